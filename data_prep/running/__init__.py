"""Run tasks in processes or on a Ray cluster, and show their progress."""
