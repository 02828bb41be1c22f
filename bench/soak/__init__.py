"""Soak: good and bad traffic for a while, then nothing of it may be left."""
