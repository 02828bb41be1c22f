"""Bundles altered at random, and what becomes of processes that open them."""
