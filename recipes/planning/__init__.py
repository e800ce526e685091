"""Plans of runs before they start: batches, memory, time, cost; no torch."""
