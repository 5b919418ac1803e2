"""Hyper-parameter sweeps on cached features: trials in several processes, or on several machines.

from train_head.sweep import SweepSettings, read_space, sweep

space = read_space("configs/space.toml")
result = sweep("features.zarr", "train_split.csv", "valid_split.csv", "runs/sweep", space, SweepSettings(trials=64))
print(result.table())
"""

from train_head.sweep.result import Retrained, SweepResult
from train_head.sweep.space import Space, read_space
from train_head.sweep.sweep import SweepSettings, sweep
from train_head.sweep.trials import Status

__all__ = ["Retrained", "Space", "Status", "SweepResult", "SweepSettings", "read_space", "sweep"]
