"""Checkpoints: written whole, read safely, resumed, copied to an object store."""
