"""Runs that prepare a run: the scaling ladder and preflight's rehearsal."""
