"""What the server's counts look like from outside."""
