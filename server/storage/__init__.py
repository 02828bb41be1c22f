"""The files of the bundle that the server uses."""
