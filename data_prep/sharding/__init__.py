"""A corpus and a tokenizer to token shards in the MDS format."""
