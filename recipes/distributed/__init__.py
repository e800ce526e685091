"""Ranks: how they connect, how a model is sharded over them, and how a hang ends."""
