"""Images as samples of a model's input: Pillow on the host, DALI on the GPU, and the preprocessor engine."""
