"""What happens during a run and Composer lacks."""
