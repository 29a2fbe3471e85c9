"""Inspect machines, ONNX files and engines."""
