"""How long a server takes until it answers."""
