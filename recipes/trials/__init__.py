"""Small runs before the real one: the scaling ladder and preflight's rehearsal."""
