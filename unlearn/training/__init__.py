"""Training: from prepared data to an unlearned model."""
