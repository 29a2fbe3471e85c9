"""Results, read back, compared and shown: tables, pages, pictures."""
