"""What artifacts and machines say of themselves."""
