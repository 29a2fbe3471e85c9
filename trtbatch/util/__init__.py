"""Small tools that know nothing of models: files, text, numbers, the machine."""
