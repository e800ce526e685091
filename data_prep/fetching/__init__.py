"""Downloads from publishers of text. Each download is checked before it gets its final name."""
