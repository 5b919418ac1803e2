"""The table `faces.csv` beside the crops of a clip: its rows, when they are, and which of them show the face.

Importing this module imports neither PyAV nor torch.
"""

import csv
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.errors import MediaError

TABLE = "faces.csv"
RECORD = "faces.json"
"""In the folder that holds the crops of all clips, beside the table of all: how the crops were made."""
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
LATER = frozenset({"end", "track"})
"""Columns that older tables lack."""
COLUMNS = (
    *("id", "row", "time", "end", "left", "top", "right", "bottom"),
    *(f"{point}_{axis}" for point in POINTS for axis in "xy"),
    *("score", "track", "valid", "others"),
)
# How far a row may be from its time at a rate, in rows: containers round times, to milliseconds at most.
_OFF_RATE = 0.05
# Seconds, see `extract.faces.video`: a step that begins this shortly before the end of a video is no row.
_ROUNDING = 0.0005
# Seconds of the only row of an older table.
_LAST_SHOWN = 0.04
_AGAIN = f"remove {TABLE} to have `emi faces` write the crops again, or to take the images by their names"


@dataclass(frozen=True, slots=True, eq=False)
class CropTable:
    """What the table of a clip says.

    Attributes:
        names: of the image of each row, "" of a row without a face.
        times: (rows, 2) float64, start and end in seconds. A clip without any face may be one row.
    """

    names: list[str]
    times: NDArray[np.float64]

    def rows_at(self, fps: float) -> list[str]:
        """Return the names of the images at a rate; a clip without any face has all its rows.

        Raises:
            MediaError: the crops were cut out at another rate.
        """
        starts, rows = self.times[:, 0], np.arange(len(self.names))
        if np.abs(starts * fps - rows).max() > _OFF_RATE:
            rate = rows[-1] / max(1e-6, starts[-1] - starts[0])
            if rate and np.abs(starts * rate - rows).max() <= _OFF_RATE:
                raise MediaError(f"holds crops at {rate:.4g} rows per second, by its {TABLE}; use --fps {rate:.4g}")
            raise MediaError(f"holds crops of frames at uneven times, by its {TABLE}; use --fps native")
        if self.names == [""]:
            return [""] * max(1, math.ceil((self.times[0, 1] - _ROUNDING) * fps))
        return self.names

    def times_until(self, max_seconds: float | None) -> NDArray[np.float64]:
        """Return the times of the rows before a cut, at which the only row of a clip without any face ends."""
        if max_seconds is None:
            return self.times
        if self.names == [""]:
            return np.minimum(self.times, max_seconds)
        return self.times[self.times[:, 0] < max_seconds]


def crop_name(row: int) -> str:
    """Return the name of the image of a row, counted from 0."""
    return f"{row + 1:05d}.png"


def is_crop_table(path: Path) -> bool:
    """Whether a file is a table that `emi faces` has written, by its header."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return _is_header(next(csv.reader(file), []))
    except (OSError, ValueError, csv.Error):
        return False


def read_crop_table(folder: Path, images: Collection[str]) -> CropTable | None:
    """Read the table of a clip; None where there is none, or one of another program.

    Args:
        folder: of the clip.
        images: names of the images there are.

    Raises:
        MediaError: the table is damaged, or lists other images.
    """
    path = folder / TABLE
    if not is_crop_table(path):
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        if not cells or [int(row["row"]) for row in cells] != list(range(1, len(cells) + 1)):
            raise ValueError("its rows are not numbered from 1")
        names = [{"0": "", "1": crop_name(i)}[row["valid"]] for i, row in enumerate(cells)]
        starts = np.array([float(row["time"]) for row in cells])
        times = np.stack([starts, _ends(starts, [row.get("end") or "" for row in cells])], axis=1)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise MediaError(f"has a damaged {TABLE} ({error}); {_AGAIN}") from error
    if other := sorted({*filter(None, names)}.symmetric_difference(images)):
        missing = other[0] in names
        said = f"lists {other[0]}, which is not there" if missing else f"does not list {other[0]}, which is there"
        raise MediaError(f"has a {TABLE} that {said}; {_AGAIN}")
    return CropTable(names, times)


def _ends(starts: NDArray[np.float64], cells: Sequence[str]) -> NDArray[np.float64]:
    """Return when rows end; in an older table, when the next one starts, and the last one lasts as the one before."""
    if all(cells):
        return np.array([float(cell) for cell in cells])
    last = starts[-1] - starts[-2] if len(starts) > 1 else _LAST_SHOWN
    return np.append(starts[1:], starts[-1] + last)


def _is_header(columns: Sequence[str]) -> bool:
    old = [[column for column in some if column not in LATER] for some in (columns, COLUMNS)]
    return old[0] == old[1]
