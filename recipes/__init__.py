"""What one runs: train, export, generate, report; each recipe reads top to bottom."""
