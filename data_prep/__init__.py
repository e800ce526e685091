"""Biomedical text in, verified token shards out: sources -> corpus -> tokenizer -> shards."""
