"""Question sets, source -> target sets and tagged sentences, as their projects publish them."""
