"""Runs compared by their results: tables, and one page to explore them."""
