"""Which batch size, with how many streams, on which profiles."""
