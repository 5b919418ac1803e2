"""What training minimises: losses by name, weighted sums of them, and weights for rare labels."""

from train_head.losses.objective import (
    Objective,
    build_objective,
    canonical,
    compares_clips,
    decode,
    is_mean_over_clips,
    outputs_per_target,
    parse,
)
from train_head.losses.registry import LOSSES, Loss
from train_head.losses.weighting import WEIGHTINGS, Weighting, canonical_weighting

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
