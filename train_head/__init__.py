"""Stage 2: labels, batches, heads, losses, metrics and the trainer, on cached features."""
