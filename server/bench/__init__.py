"""`python -m server bench`: a load test of a bundle."""
