"""From requests to records: every distinct question meets the model once."""
