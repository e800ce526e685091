"""Ranks: how they meet, how a model is sharded over them, and how a hang ends."""
