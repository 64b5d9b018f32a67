"""Plug-ins for Unlearn Lab."""
