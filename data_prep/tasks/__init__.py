"""Read question sets, source and target texts, and tagged sentences from the files of their projects."""
