"""What ``export`` does it with: torch's exporters, the model to trace, its weights, the proof."""
