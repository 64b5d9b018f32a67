"""One run over several processes, and over the tasks of a Slurm step."""
