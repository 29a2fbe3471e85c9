"""Read what an ONNX file states, run it as the reference, and change it."""
