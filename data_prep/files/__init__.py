"""Input files, JSON lines and object stores."""
