"""The training loop, its tasks, checkpoints and metrics."""
