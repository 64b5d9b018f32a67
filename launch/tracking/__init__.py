"""Trackers, which mirror runs to Weights & Biases or elsewhere."""
