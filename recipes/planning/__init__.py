"""What a run does and takes, worked out before it starts; no torch."""
