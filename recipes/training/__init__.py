"""The Trainer of every run: optimizer, schedule, callbacks, loggers."""
