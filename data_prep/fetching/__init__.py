"""Downloads from where text is published, each checked before it gets its name."""
