"""Score a prediction file against a label file, matching clips by id."""

from collections.abc import Sequence

from cache.container import StrPath
from train_head.errors import LabelError
from train_head.labels import read_labels
from train_head.metrics import Report, evaluate


def score_files(predictions: StrPath, labels: StrPath, label_scale: float = 1.0) -> Report:
    """Compare the predictions of any tool with labels.

    Args:
        predictions: CSV with Filename and the labels' columns in any order; values on the scale of 0 to 1.
        labels: CSV whose clips and columns decide.
        label_scale: the labels are divided by it.

    Raises:
        LabelError: a column or a clip is missing or too many; says how many and names the first five.
    """
    truth = read_labels(labels, label_scale)
    guess = read_labels(predictions, check_range=False)
    if set(guess.names) != set(truth.names):
        raise LabelError(
            f"{predictions} has the columns {', '.join(guess.names)}, and {labels} has {', '.join(truth.names)}"
        )
    row = {clip: i for i, clip in enumerate(guess.ids)}
    _refuse(f"{predictions} lacks", [c for c in truth.ids if c not in row], f"of {labels}")
    _refuse(f"{predictions} has", sorted(row.keys() - set(truth.ids)), f"that are not in {labels}")
    columns = [guess.names.index(name) for name in truth.names]
    values = guess.values[[row[clip] for clip in truth.ids]][:, columns]
    return evaluate(values, truth.values, truth.names)


def _refuse(what: str, clips: Sequence[str], where: StrPath) -> None:
    if clips:
        raise LabelError(f"{what} {len(clips)} clips {where} (first: {', '.join(clips[:5])})")
