"""Batch prediction, measured against the bare programs and against the plain way."""
