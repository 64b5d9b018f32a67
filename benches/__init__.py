"""Benchmarks of speed and memory: against a plain implementation and a lower bound, and between methods."""
