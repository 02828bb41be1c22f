"""Sentences sent as text, beside the same ones as token ids, and beside another server of embeddings."""
