"""What happens during a run and Composer lacks; registry.py is the table of all."""
