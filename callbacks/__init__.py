"""Callbacks that Composer lacks; registry.py is the table of all callbacks of a run."""
