"""GPT-2: model, attention, loss, optimizer, size, and the folder that a model is kept in."""
