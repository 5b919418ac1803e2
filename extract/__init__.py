"""Stage 1: find and decode media, run a backbone over it, fill a feature cache."""
