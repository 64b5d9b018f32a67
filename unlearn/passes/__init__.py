"""Passes of a model over tokens, used by training, probes and evaluation."""
