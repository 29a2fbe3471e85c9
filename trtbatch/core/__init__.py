"""What all stages share: batches, profiles, tensors, artifacts, samples and how images become them."""
