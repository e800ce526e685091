"""Text that a model writes: a list of prompts, a terminal, a web page."""
