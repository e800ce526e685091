"""Scores with their intervals, and tables beside published numbers."""
