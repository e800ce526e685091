"""The folder of a run: record, fingerprint, lock, metrics, plots, processes and signals."""
