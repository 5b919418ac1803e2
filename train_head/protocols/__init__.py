"""Several runs on features that are loaded once: seeds, folds, training on all clips, ablations.

    from train_head.protocols import train
    from train_head.runs.inputs import LabelFiles, gather_inputs

    inputs = gather_inputs("features.zarr", LabelFiles.named("train_split.csv", "valid_split.csv"))
    print(train(inputs, "runs/five", TrainSettings(), Validation(seeds=5)).result.table())

Each resumes as a run does: killed at any moment, the same call continues and gives the same files.
"""

from train_head.protocols.ablation import PAPER_ROWS, Ablation, Row, ablate, read_rows, rows_settings, rows_streams
from train_head.protocols.ensemble import EnsembleResult, ensemble
from train_head.protocols.result import ProtocolResult, Scored
from train_head.protocols.run import Outcome, train
from train_head.protocols.streams import StreamAblation, ablate_streams

__all__ = [
    "PAPER_ROWS",
    "Ablation",
    "EnsembleResult",
    "Outcome",
    "ProtocolResult",
    "Row",
    "Scored",
    "StreamAblation",
    "ablate",
    "ablate_streams",
    "ensemble",
    "read_rows",
    "rows_settings",
    "rows_streams",
    "train",
]
