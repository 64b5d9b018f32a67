"""Load, build, adapt and save causal language models."""
