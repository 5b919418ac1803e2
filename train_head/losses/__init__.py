"""What training minimises: losses by name, weighted sums of them, and weights for rare labels."""

from train_head.losses.objective import (
    WEIGHTINGS,
    Objective,
    Weighting,
    build_objective,
    canonical,
    canonical_weighting,
    compares_clips,
    decode,
    is_mean_over_clips,
    outputs_per_target,
    parse,
)
from train_head.losses.registry import LOSSES, Loss

__all__ = [
    "LOSSES",
    "WEIGHTINGS",
    "Loss",
    "Objective",
    "Weighting",
    "build_objective",
    "canonical",
    "canonical_weighting",
    "compares_clips",
    "decode",
    "is_mean_over_clips",
    "outputs_per_target",
    "parse",
]
