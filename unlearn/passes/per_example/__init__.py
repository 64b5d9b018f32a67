"""Gradients of single examples from one backward pass of a batch."""
