"""Errors and exit codes, whole files, manifests, the ranks: what every command needs."""
