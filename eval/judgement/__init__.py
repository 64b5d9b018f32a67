"""From metrics to a judgement in four aspects."""
