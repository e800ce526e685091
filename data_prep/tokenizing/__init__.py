"""A corpus to a tokenizer, and texts to token ids."""
