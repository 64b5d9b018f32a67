"""Benchmarks of speed and memory: against a plain implementation and a lower bound, and between methods."""

import unlearn  # noqa: F401 (hides torchao; before what imports transformers)
