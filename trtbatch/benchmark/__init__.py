"""Time engines: timing loops, stopping rule, clock checks, and paired comparisons."""
