"""Check every row of an engine, against itself and against a reference."""
