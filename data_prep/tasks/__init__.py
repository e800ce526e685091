"""Read question sets, sets of source and target texts, and tagged sentences from the files that projects publish."""
