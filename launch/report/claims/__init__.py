"""Try the claims of papers on runs: paired differences over seeds, a verdict for each, one page."""
