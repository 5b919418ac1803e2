"""Protocols of several runs on features that are loaded once: seeds, folds, training on all clips, ablations.

    from train_head.protocols import train_seeds
    from train_head.runs.train import gather_inputs

    inputs = gather_inputs("features.zarr", {"train": "train_split.csv", "valid": "valid_split.csv"})
    print(train_seeds(inputs, "runs/five", TrainSettings(), 5).table())

Each is resumed as a run is: killed at any moment, the same call goes on and gives the same files.
"""

from train_head.protocols.ablation import Ablation, ablate
from train_head.protocols.ensemble import EnsembleResult, ensemble
from train_head.protocols.everything import AllResult, train_everything, train_on_all, train_seeds_on_all
from train_head.protocols.folds import OneFold, train_folds, train_one_fold
from train_head.protocols.members import OnRun
from train_head.protocols.result import ProtocolResult, Scored
from train_head.protocols.rows import PAPER_ROWS, Row, read_rows, rows_settings
from train_head.protocols.seeds import train_seeds
from train_head.protocols.start import Outcome, check_protocol, run_on, run_protocol

__all__ = [
    "PAPER_ROWS",
    "Ablation",
    "AllResult",
    "EnsembleResult",
    "OnRun",
    "OneFold",
    "Outcome",
    "ProtocolResult",
    "Row",
    "Scored",
    "ablate",
    "check_protocol",
    "ensemble",
    "read_rows",
    "rows_settings",
    "run_on",
    "run_protocol",
    "train_everything",
    "train_folds",
    "train_on_all",
    "train_one_fold",
    "train_seeds",
    "train_seeds_on_all",
]
