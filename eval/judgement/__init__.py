"""Judge metrics in four aspects."""
