"""Build engines from ONNX files and validate them."""
