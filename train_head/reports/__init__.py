"""What people read of a run: model card, figures, progress."""
