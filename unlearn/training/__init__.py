"""From prepared data to an unlearned model."""
