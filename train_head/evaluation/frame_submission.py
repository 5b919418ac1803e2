"""Write and check predictions of frames as the Aff-Wild2 challenges expect them: rows and order of a template."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.ids import find_ids
from cache.paths import StrPath
from train_head.data.image_rows import IMAGE_LOCATION, read_image_rows
from train_head.data.label_format import Range
from train_head.data.labels import Labels
from train_head.data.matching import are_few
from train_head.errors import LabelError
from train_head.evaluation.submission import problem, put, refuse_problems, repeated, value_problems

BOUNDS: Range = (-1.0, 1.0)


def write_frame_submission(path: StrPath, predictions: Labels, template: StrPath, bounds: Range = BOUNDS) -> int:
    """Write the rows of a template, in its order, with predictions instead of its values.

    A few rows beyond the last frame that was predicted take its prediction, since tools that decode differ by a frame
    or two.

    Args:
        path: output file.
        predictions: per frame, of the template's clips and perhaps of others.
        template: file with a row per frame, `<trial>/00001.jpg`; if it has targets, their order is used.
        bounds: to which predictions are clipped.

    Returns:
        The number of values outside the bounds.

    Raises:
        LabelError: the targets differ, or a clip or row of the template was not predicted; names the first five.
    """
    rows = read_image_rows(template)
    names = rows.names or predictions.names
    if sorted(names) != sorted(predictions.names):
        raise LabelError(
            f"{rows.path} has the targets {', '.join(names)}, and {predictions.path} {', '.join(predictions.names)}"
        )
    columns = [predictions.names.index(name) for name in names]
    values = predictions.values[_predicted(predictions, rows.places, rows.path)][:, columns]
    broken = [rows.images[i] for i in np.flatnonzero(~np.isfinite(values).all(axis=1))]
    refuse_problems(problem(broken, "predictions are not finite"), predictions.path)
    clipped = np.clip(values, *bounds)
    lines = (",".join([image, *(f"{v:.9g}" for v in row)]) for image, row in zip(rows.images, clipped, strict=True))
    put(Path(path), "\n".join([",".join([IMAGE_LOCATION, *names]), *lines, ""]))
    return int((clipped != values).sum())


def check_frame_submission(predictions: StrPath, template: StrPath, bounds: Range = BOUNDS) -> list[str]:
    """List everything for which a challenge's server would reject a file, or score it wrongly.

    Args:
        predictions: the file to be submitted.
        template: with the expected header and rows; its values are ignored.
        bounds: of the values.

    Returns:
        One sentence per problem, each with a count and the first five; empty if there are none.

    Raises:
        LabelError: a file is missing, or has no column `image_location` or no rows.
    """
    wanted, given = read_image_rows(template), read_image_rows(predictions)
    problems = []
    if wanted.names and given.names != wanted.names:
        problems.append(f"the header is {','.join(given.names)!r}, expected {','.join(wanted.names)!r}")
    asked, there = set(wanted.images), set(given.images)
    problems += [
        *problem([image for image in wanted.images if image not in there], "rows are missing"),
        *problem([image for image in given.images if image not in asked], "rows are not asked for"),
        *problem(repeated(list(given.images)), "rows stand twice or more"),
    ]
    both = [
        [image for image in dict.fromkeys(images) if image in asked & there] for images in (given.images, wanted.images)
    ]
    moved = [f"{a} where {b} belongs" for a, b in zip(*both, strict=True) if a != b]
    problems += problem(moved, "rows are out of order")
    ragged = [image for image, cells in zip(given.images, given.cells, strict=True) if len(cells) != len(given.names)]
    problems += problem(ragged, f"rows do not have {len(given.names)} values")
    cells = [
        (f"{image} {name}", cell)
        for image, row in zip(given.images, given.cells, strict=True)
        for name, cell in zip(given.names, row, strict=False)
    ]
    return problems + value_problems(cells, bounds)


def _predicted(predictions: Labels, places: Sequence[tuple[str, int]], template: str) -> NDArray[np.int64]:
    """(rows,) rows of the predictions for the places of a template."""
    assert predictions.offsets is not None
    clips = list(dict.fromkeys(clip for clip, _ in places))
    known = {name: i for i, name in enumerate(predictions.filenames)}
    found = dict(zip(clips, find_ids(clips, known), strict=True))
    absent = problem([clip for clip, name in found.items() if name is None], f"clips of {template} were not predicted")
    advice = f"predict them with `emi predict … --out FOLDER`, or with `emi train-head … --test {template}`"
    refuse_problems([*absent, advice] if absent else [], predictions.path)
    rows, lacking = [], []
    for clip, group in itertools.groupby(places, key=lambda place: place[0]):
        number = known[found[clip] or clip]
        frames = np.array([frame for _, frame in group])
        moments = predictions.moments_of(number)
        beyond = frames > (moments[-1] if len(moments) else -1)
        at = np.searchsorted(moments, np.where(beyond, moments[-1:].sum(), frames))
        few = are_few(int(frames.max() - moments[-1:].sum()), len(moments))
        if not len(moments) or (beyond.any() and not few) or (moments[at] != frames)[~beyond].any():
            lacking.append(f"{clip}: {len(moments)} rows for frames up to {frames.max() + 1}")
        rows.append(predictions.offsets[number] + at)
    refuse_problems(problem(lacking, f"clips lack rows of {template}"), predictions.path)
    return np.concatenate(rows)
