"""Where text comes from: PubMed, PMC, the Pile, a sample, files of one's own."""
