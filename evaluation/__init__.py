"""Metrics, benchmarks and report pages: pure functions of texts and arrays."""
