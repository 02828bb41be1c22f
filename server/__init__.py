"""Serve a bundle over HTTP. `python -m server --help`."""
