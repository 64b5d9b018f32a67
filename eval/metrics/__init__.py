"""Metrics: pure functions from what was recorded to numbers."""
