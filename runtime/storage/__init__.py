"""Bundles on Cloud Storage; the only part of the runtime with a network."""
