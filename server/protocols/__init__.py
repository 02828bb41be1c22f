"""The inference protocols: how a request is read and an answer written."""
