"""Text to token shards: acquire.py, corpus.py, tokenizer.py, shards.py, verify.py."""
