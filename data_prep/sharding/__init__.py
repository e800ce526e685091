"""Turn a corpus into token shards in the MDS format, with a tokenizer."""
