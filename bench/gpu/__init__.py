"""The server on an accelerator."""
