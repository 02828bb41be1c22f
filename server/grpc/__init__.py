"""gRPC: the server, its streams and its health service."""
