"""Build a corpus from inputs: drop duplicates, held-out PubMed numbers and overlap with evaluation texts."""
