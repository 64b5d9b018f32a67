"""The tracker, which mirrors runs to Weights & Biases."""
