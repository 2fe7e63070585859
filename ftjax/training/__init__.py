"""State, step, optimizers, loop, checkpoints and records."""
