"""Read the CSV of one clip as openSMILE, OpenFace and py-feat write it.

The tool is recognised by its header (`TOOLS`). Each row becomes a frame with the times that the file states. A tool
that detects faces also says in which frames it found one: where several people are seen, the rows of the one who is
found in most frames are taken. Columns that say which row it is are no features.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.exchange.features import FeatureFileError, Features
from cache.exchange.tables import read_rows


@dataclass(frozen=True, kw_only=True)
class Tool:
    """What the columns of a tool's CSV mean.

    Attributes:
        name: of the tool.
        start: time of a row in seconds; where `by_frame`, its number among the frames of the video.
        end: time at which a row ends; None where it lasts until the next.
        by_frame: whether the file does not say how long a frame lasts.
        found: above zero where a face was found; None where the tool detects no faces.
        frame: number of the frame, which rows about several faces share.
        face: which face a row is about.
        clip: which clip a row is about; a file has one.
        others: further columns that are no features.
    """

    name: str
    start: str
    end: str | None = None
    by_frame: bool = False
    found: str | None = None
    frame: str | None = None
    face: str | None = None
    clip: str | None = None
    others: tuple[str, ...] = ()

    @property
    def required(self) -> set[str]:
        """Columns by which the tool is recognised."""
        return {name for name in (self.start, self.end, self.found, self.frame) if name}

    @property
    def not_features(self) -> set[str | None]:
        """Columns that are no features; the one without a name is the index that pandas writes."""
        return {*self.required, self.face, self.clip, *self.others, ""}


TOOLS = (
    Tool(name="opensmile-python", start="start", end="end", clip="file"),
    Tool(name="openSMILE", start="frameTime", clip="name", others=("frameIndex",)),
    # https://github.com/TadasBaltrusaitis/OpenFace/wiki/Output-Format
    Tool(name="OpenFace", start="timestamp", found="success", frame="frame", face="face_id", others=("confidence",)),
    # Its approx_time is rounded to seconds, and of no use. https://py-feat.org
    Tool(
        name="py-feat",
        start="frame",
        by_frame=True,
        found="FaceScore",
        frame="frame",
        face="Identity",
        others=("input", "approx_time", "FrameHeight", "FrameWidth"),
    ),
)
_TIMEDELTA = re.compile(r"(?:(\d+) days? \+?)?(\d+):(\d\d):(\d\d(?:\.\d+)?)")
"""As pandas writes it: `0 days 00:00:00.500000`."""
_NAN = re.compile(r"|n/?a|-?nan(\(\w*\))?|-?1\.#(ind|qnan)\d*", re.IGNORECASE)
"""What stands for no number; the last two in the output of Microsoft's C++ library."""
SHOWN = 40
"""Characters of a cell that are repeated."""


class _Row(NamedTuple):
    """A row of the file."""

    line: int
    start: float
    end: float
    frame: float
    face: str
    found: bool
    values: NDArray[np.float64]


def read_csv(path: Path, choose: re.Pattern[str] | None, hop_seconds: float | None) -> Features:
    """Read the features, times and marks of one clip.

    Args:
        path: of the file.
        choose: the features are the columns in whose names this is found; None takes all.
        hop_seconds: time from one frame of the video to the next, for tools that only number them.

    Raises:
        FeatureFileError: no CSV of a known tool, or cells that are no numbers where there should be some.
        TableError: it is no text in UTF-8, or no CSV.
    """
    lines = read_rows(path)
    _, header = next(lines, (0, []))
    tool = _tool_of(header)
    names = tuple(n for n in header if n not in tool.not_features and (choose is None or choose.search(n)))
    if not names:
        raise FeatureFileError(f"has no column of features{' that --columns selects' if choose else ''}")
    if tool.by_frame and hop_seconds is None:
        raise FeatureFileError(f"was written by {tool.name}, which numbers frames: give the seconds of one with --hop")
    rows, faces = _parse(tool, header, names, lines), 0
    if tool.found:
        rows, faces = _one_face(rows)
    frames = np.array([row.values for row in rows], np.float64).reshape(len(rows), len(names))
    valid = np.array([row.found for row in rows], bool)
    _check_numbers(frames, valid, [row.line for row in rows], names)
    starts = np.array([row.start for row in rows], np.float64)
    ends = (
        np.array([row.end for row in rows], np.float64)
        if tool.end
        else _next_starts(starts, single=1.0 if tool.by_frame else 0.0)
    )
    return Features(
        frames=frames,
        times=np.stack([starts, ends], axis=1) * (hop_seconds if tool.by_frame and hop_seconds else 1),
        valid=valid if tool.found else None,
        columns=names,
        tool=tool.name,
        by_frame=tool.by_frame,
        faces=faces,
    )


def _tool_of(header: Sequence[str]) -> Tool:
    for tool in TOOLS:
        if tool.required <= set(header):
            repeated, times = Counter(header).most_common(1)[0]
            if times > 1:
                raise FeatureFileError(f"has {times} columns {repeated!r}; keep one of them")
            return tool
    known = "; ".join(f"{tool.name} has {', '.join(sorted(tool.required))}" for tool in TOOLS)
    raise FeatureFileError(f"is no CSV of a tool that is known by its columns ({known})")


def _parse(
    tool: Tool, header: Sequence[str], names: Sequence[str], lines: Iterator[tuple[int, list[str]]]
) -> list[_Row]:
    """Read the rows of one clip.

    Raises:
        FeatureFileError: names the line, and the column where a cell cannot be used.
    """
    rows: list[_Row] = []
    clips = set()
    for line, cells in lines:
        if len(cells) != len(header):
            raise FeatureFileError(f"line {line} has {len(cells)} cells, and the header {len(header)}")
        row = dict(zip(header, cells, strict=True))
        clips.add(row.get(tool.clip or ""))
        if tool.clip and len(clips) > 1:
            raise FeatureFileError(f"line {line} is about another clip than those before; write one CSV per clip")
        try:
            values = np.array([float(row[name]) for name in names])
        except ValueError:
            values = np.array([_number(row, name, line) for name in names])
        start, end, frame, score = (
            _number(row, name, line) if name else 0.0 for name in (tool.start, tool.end, tool.frame, tool.found)
        )
        found = tool.found is None or (score > 0 and not np.isnan(values).all())
        rows.append(_Row(line, start, end, frame, row.get(tool.face or "", ""), found, values))
    return rows


def _number(row: Mapping[str, str], column: str, line: int) -> float:
    """Return a number, or the seconds of a time as pandas writes it; NaN where there is none."""
    cell = row[column]
    if _NAN.fullmatch(cell):
        return float("nan")
    if match := _TIMEDELTA.fullmatch(cell):
        days, hours, minutes, seconds = match.groups(default="0")
        return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60 + float(seconds)
    try:
        return float(cell)
    except ValueError:
        raise FeatureFileError(
            f"line {line}, column {column!r}: {cell[:SHOWN]!a} is no number; select the features with --columns REGEX"
        ) from None


def _one_face(rows: Sequence[_Row]) -> tuple[list[_Row], int]:
    """Return a row per frame, of the face that is found in most, and the number of faces.

    Where a frame has rows of other faces only, nothing was found. Where faces have no names, the first of a frame
    counts.
    """
    counts = Counter(row.face for row in rows if row.found)
    face = counts.most_common(1)[0][0] if counts else ""
    kept: dict[float, _Row] = {}
    for row in rows:
        ours = row._replace(found=row.found and row.face == face)
        if row.frame not in kept or (ours.found and not kept[row.frame].found):
            kept[row.frame] = ours
    return list(kept.values()), len(counts)


def _check_numbers(
    frames: NDArray[np.float64], valid: NDArray[np.bool_], lines: Sequence[int], names: Sequence[str]
) -> None:
    wrong = np.argwhere(~np.isfinite(frames) & valid[:, None])
    if len(wrong):
        row, column = wrong[0].tolist()
        raise FeatureFileError(
            f"line {lines[row]}, column {names[column]!r} holds {frames[row, column]}; leave the column out with "
            "--columns REGEX, or mend the file"
        )


def _next_starts(starts: NDArray[np.float64], single: float) -> NDArray[np.float64]:
    """Return when rows end that last until the next; the last is as long as the median.

    Args:
        starts: (rows,) times.
        single: how long a row lasts that is the only one.

    Raises:
        FeatureFileError: all rows have the same time.
    """
    steps = np.diff(starts)
    if len(steps) and not steps.any():
        raise FeatureFileError(f"has {len(starts)} rows, and all are at {starts[0]:g} s")
    return np.append(starts[1:], starts[-1:] + (np.median(steps) if len(steps) else single))
