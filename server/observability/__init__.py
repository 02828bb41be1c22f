"""Metrics and statistics: Prometheus, the statistics extension, and several processes."""
