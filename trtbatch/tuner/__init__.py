"""Choose batch sizes, numbers of streams and optimization profiles by measurement."""
