"""Inputs to a corpus: duplicates, held-out numbers and overlap with evaluation texts are removed."""
