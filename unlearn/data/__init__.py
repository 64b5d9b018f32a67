"""Read examples, tokenise them and make batches."""
