"""Run a source through an engine: sources, feeds, the pipeline, sinks, and an engine as a function."""
