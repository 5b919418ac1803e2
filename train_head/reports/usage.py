"""How to predict new clips with a run, for its card."""

from collections.abc import Iterable, Mapping
from typing import Any

from train_head.runs.inputs import Inputs
from train_head.training.settings import TrainSettings

IMPORTED = (
    "Some of the features were imported, and emi cannot make them from media: predict clips of caches with "
    "`--test LABELS` in the command that trained the run."
)


def usage_of(inputs: Inputs, settings: TrainSettings) -> str:
    """Return Markdown: the command that predicts media with a run.

    Args:
        inputs: what it was made from.
        settings: of the run.
    """
    streams, by_frame = inputs.source.streams.values(), inputs.labels["train"].by_frame
    timed = bool(settings.label_fps) or any(info.row_seconds is None for info in streams)
    return how_to_predict([info.fingerprint for info in streams], by_frame=by_frame, timed=timed)


def how_to_predict(fingerprints: Iterable[Mapping[str, Any]], *, by_frame: bool, timed: bool) -> str:
    """Return Markdown: the command that predicts media, or what to do where media do not suffice.

    Args:
        fingerprints: of the features that the run reads.
        by_frame: whether every frame is predicted.
        timed: whether the run says when these are.
    """
    if not all("weights_sha256" in made for made in fingerprints):
        return IMPORTED
    if not by_frame:
        return "```\nemi predict MEDIA --model THIS_FOLDER\n```"
    command = f"emi predict MEDIA --model THIS_FOLDER --out FOLDER{'' if timed else ' --label-fps 25'}"
    return (
        f"```\n{command}\n```\n\nIt writes a file per clip with a row per frame, in the layout of Aff-Wild2's labels."
    )
