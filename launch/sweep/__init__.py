"""Sweeps: their jobs, the records of the jobs on disk, and the summary at the end."""
