"""Hyper-parameter sweeps on cached features: trials in several processes, or on several machines."""
