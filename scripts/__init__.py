"""Set up, test and measure the project."""
