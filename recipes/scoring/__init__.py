"""Scores with bootstrap intervals, and tables beside published numbers."""
