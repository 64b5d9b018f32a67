"""Passes of a model over tokens, for training, probes and evaluation alike."""
