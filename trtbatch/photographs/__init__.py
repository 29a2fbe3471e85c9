"""Photographs: from a file to a row of the model's input, on the host or on the GPU."""
