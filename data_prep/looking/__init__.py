"""Show documents of a corpus with what each rule removed, so that one can read them before training."""
