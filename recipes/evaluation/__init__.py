"""Scores of a model on question sets, perplexity, and contamination of its training text."""
