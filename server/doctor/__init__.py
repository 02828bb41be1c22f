"""`python -m server doctor`: what Vertex AI would make of a server."""
