"""Bundles by name, on disk or on Cloud Storage; the only part of the runtime with a network."""
