"""Several processes that answer on the same ports: how many, and their supervision."""
