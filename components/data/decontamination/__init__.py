"""Benchmarks, and what of them stands in training data."""
