"""Several machines and servers: Ray Data's and Triton's work, prepared here."""
