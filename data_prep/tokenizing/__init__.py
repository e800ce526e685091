"""Train a tokenizer on a corpus, and encode texts as token ids."""
