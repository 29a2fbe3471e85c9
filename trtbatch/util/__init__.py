"""Provide small tools that know nothing of models: files, text, numbers, system info."""
