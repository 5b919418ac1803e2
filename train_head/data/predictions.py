"""Files of predictions, in the layout of the labels that they predict: a CSV, or a folder with a file per clip."""

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.exchange.tables import FILENAME
from cache.system.atomic_file import write_atomically
from train_head.data.frame_labels import read_frame_labels
from train_head.data.labels import Labels, read_labels
from train_head.data.matching import align


def file_of(folder: Path, name: str, labels: Labels) -> Path:
    """Return where a file in the layout of some labels is: `name.csv`, or the folder `name` where they are a folder."""
    return folder / (name if labels.is_folder else f"{name}.csv")


def prediction_file(folder: Path, split: str, labels: Labels) -> Path:
    """Return where a run folder has the predictions of a split."""
    return file_of(folder, f"predictions_{split}", labels)


def stored_file(folder: Path, name: str) -> Path:
    """Return the folder `name` where there is one, else where `name.csv` is."""
    return folder / name if (folder / name).is_dir() else folder / f"{name}.csv"


def write_predictions(place: Path, labels: Labels, names: Sequence[str], values: NDArray[np.floating]) -> None:
    """Write predictions with the header, clips and rows of the labels; rows without a label are predicted too.

    What stood there is replaced as a whole.

    Args:
        place: CSV, or a folder where the labels are one.
        labels: of the clips that were predicted.
        names: (targets,).
        values: (clips, targets), or (label rows, targets) for labels per frame.
    """
    if not labels.is_folder:
        moments = None if labels.moments is None else (labels.clock, labels.moments)
        filenames = np.repeat(np.array(labels.filenames, dtype=object), labels.lengths)
        write_atomically(place, predictions_csv(filenames, names, values, moments).encode())
        return
    parts = ((name, values[labels.rows_of([i])]) for i, name in enumerate(labels.filenames))
    write_folder(place, {name: rows_text(names, part) for name, part in parts})


def rows_text(names: Iterable[str], values: Iterable[Iterable[float]]) -> str:
    """Return predictions of every frame of a clip as the text of its file, in the layout of Aff-Wild2.

    Args:
        names: (targets,), the first line.
        values: (rows, targets).
    """
    return "\n".join([",".join(names), *(",".join(f"{value:.9g}" for value in row) for row in values), ""])


def predictions_csv(
    filenames: Iterable[str],
    names: Iterable[str],
    values: Iterable[Iterable[float]],
    moments: tuple[str, Iterable[float]] | None = None,
) -> str:
    """Return predictions as the text of a CSV; nine digits keep float32 exact.

    Args:
        filenames: (rows,).
        names: (targets,), the header after Filename.
        values: (rows, targets).
        moments: for rows per frame, the name of a column that says when they are, and (rows,) what stands in it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([FILENAME, *([moments[0]] if moments else []), *names])
    when = [[f"{moment:.12g}"] for moment in moments[1]] if moments else None
    for i, (filename, row) in enumerate(zip(filenames, values, strict=True)):
        writer.writerow([filename, *(when[i] if when else []), *(f"{value:.9g}" for value in row)])
    return text.getvalue()


def write_folder(place: Path, texts: Mapping[str, str]) -> None:
    """Write a folder with a text file per clip, and replace what stood there as a whole.

    Args:
        place: the folder.
        texts: by clip, what is in its file.
    """
    temporary = place.with_name(place.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, text in texts.items():
        file = temporary / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    shutil.rmtree(place, ignore_errors=True)
    temporary.replace(place)


def read_folder(place: Path) -> dict[str, str]:
    """Return what `write_folder` wrote; nothing where there is no folder."""
    files = place.rglob("*.txt")
    return {f.relative_to(place).with_suffix("").as_posix(): f.read_text(encoding="utf-8") for f in files}


def read_predictions(place: Path, labels: Labels) -> NDArray[np.float32]:
    """Read the predictions of some labels, in their order: (clips, targets) or (label rows, targets).

    Raises:
        LabelError: they are not there, or lack a clip or a row.
    """
    read = read_frame_labels if labels.by_frame else read_labels
    return align(read(place, check_range=False), labels)
