"""`emi predict`: intensities of media with a trained run."""

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: emi predict clip.mp4 --model runs/paper --csv predictions.csv"


def predict(
    media: Annotated[list[str], typer.Argument(help="Media files, folders, CSVs or text lists.")],
    model: Annotated[Path, typer.Option(help="Run folder.")],
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write here instead of to the screen.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Where the backbone is now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Predict intensities; the columns are the targets the run was trained on."""
    from emi.prediction import load
    from extract.failures import Failure
    from train_head.labels import FILENAME

    loaded = load(model, backbone=backbone, device=device)
    results = list(loaded.iterate(media))
    failures = [result for result in results if isinstance(result, Failure)]
    records = sorted((r for r in results if not isinstance(r, Failure)), key=lambda record: record[FILENAME])
    rows = [[r[FILENAME], *(f"{r[name]:.9g}" for name in loaded.names)] for r in records]
    with csv_file.open("w", newline="", encoding="utf-8") if csv_file else _stdout() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([FILENAME, *loaded.names])
        writer.writerows(rows)
    if csv_file:
        typer.echo(f"wrote {len(records)} predictions to {csv_file}")
    for failure in failures:
        typer.echo(f"{failure.path}: {failure.reason}", err=True)
    if failures:
        raise typer.Exit(1)


def _stdout():  # type: ignore[no-untyped-def]
    import contextlib

    return contextlib.nullcontext(sys.stdout)
