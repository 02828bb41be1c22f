"""A side-by-side load test of the server and its peers: `python -m bench.serving --help`."""
