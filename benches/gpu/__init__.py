"""A check of this program on one GPU: `python -m benches.gpu`."""
