"""The tracker: what of a run is mirrored to Weights & Biases, and under which names."""
