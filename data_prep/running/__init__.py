"""Tasks on processes or on a Ray cluster, and their progress."""
