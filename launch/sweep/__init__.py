"""A sweep: its jobs, what they leave on disk, and what is told of them at the end."""
