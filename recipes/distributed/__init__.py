"""Ranks: how they connect, how a model is sharded over them, and what ends a hanging run."""
