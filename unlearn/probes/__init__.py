"""Probes: what watches a training and changes nothing of it."""
