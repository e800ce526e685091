"""Commands that turn text into token shards: acquire.py, corpus.py, look.py, tokenizer.py, shards.py, verify.py."""
