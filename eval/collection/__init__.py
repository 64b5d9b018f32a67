"""Collect a model's records for requests; each distinct question is computed once."""
