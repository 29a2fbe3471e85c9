"""Run engines on several machines with Ray Data, and write them as models of NVIDIA Triton."""
