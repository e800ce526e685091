"""Fine-tuning: a model and a task in, a tuned model and its scores out."""
