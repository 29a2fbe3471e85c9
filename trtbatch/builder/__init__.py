"""What ``build`` does it with: the request, profiles and files, what the engine is seen to do."""
