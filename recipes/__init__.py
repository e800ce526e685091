"""The commands: train, plan, preflight, ladder, finetune, sweep, export, evaluate, generate, report."""
