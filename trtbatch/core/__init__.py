"""Hold what all stages share: batches, profiles, tensors, artifacts, samples and the preprocessing of images."""
