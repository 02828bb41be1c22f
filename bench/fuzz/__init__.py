"""Bundles altered at random, and what becomes of whoever opens them."""
