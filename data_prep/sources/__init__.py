"""Sources of text: PubMed, PMC, the Pile, a sample, the user's own files."""
