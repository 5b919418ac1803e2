"""`emi submission`: predictions of frames as a challenge takes them."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from train_head.training.settings import TrainSettings


@options.takes(
    (TrainSettings, "label_range"), label_range="Ends of the values, to which they are clipped [default: -1,1]."
)
def submission(
    predictions: Annotated[
        Path, typer.Argument(help="Folder with a text file per clip, of any program; or a run with predictions_test.")
    ],
    out: Annotated[Path, typer.Option(help="File to write.")],
    *,
    template: Annotated[
        Path, typer.Option(help="The organisers' example: a row per frame, trial/00001.jpg, in the order to submit.")
    ],
    given: options.Given,
) -> None:
    """Write predictions per frame in the form of the Aff-Wild2 challenges: the rows of a template, and nothing else.

    Check a file of any program with: emi evaluate FILE TEMPLATE --submission

    Example: emi submission runs/six --template va_test_example.txt --out predictions.txt
    """
    from emi.console import check_writable
    from train_head.data.label_format import parse_range
    from train_head.evaluation.frame_submission import BOUNDS

    check_writable(out)
    bounds = parse_range(given["label_range"]) if "label_range" in given else BOUNDS
    write_rows_of(template, _predictions_in(predictions, template), out, bounds)


def _predictions_in(place: Path, template: Path) -> Path:
    """Return where the predictions for a template are: those of the test clips, where the place is a run.

    Raises:
        LabelError: it is a run without them.
    """
    from train_head.data.predictions import stored_file
    from train_head.errors import LabelError

    test = stored_file(place, "predictions_test")
    if test.exists():
        return test
    if others := sorted(path.name for path in place.glob("predictions_*")):
        raise LabelError(
            f"{place} is a run without predictions_test; it has {' and '.join(others)}, whose clips are not those of a "
            f"test. Predict with `emi predict MEDIA --model {place} --template {template} --out FOLDER --submission "
            f"FILE`, train with `emi train-head … --test {template}`, or name a folder of predictions itself"
        )
    return place


def write_rows_of(template: Path, predictions: Path, out: Path, bounds: tuple[float, float]) -> None:
    """Write the rows of a template, and say how many values were clipped.

    Args:
        template: the organisers' example.
        predictions: folder with a text file per clip, or another file of predictions per frame.
        out: file to write.
        bounds: to which values are clipped.
    """
    from train_head.data.reading import read_any_labels
    from train_head.evaluation.frame_submission import write_frame_submission

    clipped = write_frame_submission(out, read_any_labels(predictions, check_range=False), template, bounds)
    low, high = bounds
    typer.echo(f"wrote the rows of {template} to {out}; {clipped} values were clipped to {low:g} and {high:g}")
