"""Match predictions with labels: clips by their names and, for labels per frame, rows by when they are."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache.errors import ClipNameError
from cache.ids import match_ids
from train_head.data.labels import FILENAME, Labels
from train_head.errors import LabelError
from train_head.targets import FRAME

SAME_MOMENT = 1e-3
"""Seconds up to which two times are one: files give them with three digits or more."""
FEW_ROWS, FEW_SHARE = 3, 0.01
"""Rows by which a clip may differ from its labels, and the share of them; the larger of the two counts. In some videos
of Aff-Wild2, the numbers of annotations and of frames that a decoder gives differ by one or two."""


def match_clips(one: Labels, other: Labels) -> list[int | None]:
    """Return the number of each clip in another file, matched by clip id; None where it is not there.

    Args:
        one: labels or predictions whose clips are looked for.
        other: labels or predictions in which they are looked for.

    Raises:
        LabelError: a Filename matches several clips of the other file, or two Filenames are one clip.
    """
    number = {name: i for i, name in enumerate(other.filenames)}
    try:
        found = match_ids(one.filenames, number)
    except ClipNameError as error:
        raise LabelError(f"{one.path} beside {other.path}: {error}") from error
    return [None if name is None else number[name] for name in found]


def check_same_clips(one: Labels, other: Labels, what: str) -> None:
    """Refuse predictions of different clips.

    Args:
        one: predictions.
        other: predictions.
        what: what can be done with predictions of the same clips only: "compared".

    Raises:
        LabelError: says how many are in one alone, and names the first five.
    """
    for this, that in ((one, other), (other, one)):
        missing = [clip for clip, found in zip(this.ids, match_clips(this, that), strict=True) if found is None]
        if missing:
            raise LabelError(
                f"{that.path} lacks {len(missing)} of the {len(this)} clips of {this.path} (first: "
                f"{', '.join(missing[:5])}); only predictions of the same clips can be {what}"
            )


def align(guess: Labels, truth: Labels) -> NDArray[np.float32]:
    """Return predictions in the order of the labels, without clips and rows that these do not have.

    Args:
        guess: predictions.
        truth: labels, which decide on clips, rows, columns and order.

    Returns:
        (clips, targets), or (label rows, targets) for labels per frame.

    Raises:
        LabelError: the columns differ, or clips or rows of the labels were not predicted; names the first five.
    """
    if set(guess.names) != set(truth.names):
        raise LabelError(
            f"{guess.path} has the columns {', '.join(guess.names)}, and {truth.path} has {', '.join(truth.names)}; "
            "name those to score with --targets"
        )
    rows = np.concatenate([np.empty(0, np.int64), *_matched(guess, truth)])
    if (rows < 0).any():
        clips = np.repeat(np.array(truth.ids, dtype=object), truth.lengths)[rows < 0]
        raise LabelError(f"{guess.path} lacks {len(clips)} of the rows of {truth.path} (first: of {clips[0]})")
    return guess.values[rows][:, [guess.names.index(name) for name in truth.names]]


def predicted_rows(truth: Labels, guess: Labels) -> Labels:
    """Return labels without the rows that were not predicted; labels per clip as they are.

    Rows are of one moment where their times or numbers of frames are equal; those of a folder are frames from 0.

    Args:
        truth: labels of the clips that were predicted.
        guess: predictions.

    Raises:
        LabelError: a clip was not predicted, or has many rows more or less than its labels; names the first five.
    """
    if not truth.by_frame:
        return truth
    kept = [rows >= 0 for rows in _matched(guess, truth)]
    labelled = labelled_rows(truth)
    free = truth.moments is None and guess.moments is None
    few: list[str] = []
    many: list[str] = []
    for i, (number, found) in enumerate(zip(_numbers(guess, truth), kept, strict=True)):
        rows, predicted = len(found), int(guess.lengths[number])
        apart = abs(rows - predicted) if free else int((labelled[truth.rows_of([i])] & ~found).sum())
        said = f"{predicted} rows for {rows} of labels" if free else f"{apart} of {rows} rows of labels not predicted"
        if apart:
            (few if are_few(apart, rows) else many).append(f"{truth.filenames[i]}: {said}")
    if many:
        raise LabelError(
            f"the rows of {guess.path} are not those of {truth.path} in {some_clips(many)}; predict every frame that "
            "has a label"
        )
    if all(found.all() for found in kept):
        return replace(truth, cut=tuple(few))
    moments = [truth.moments_of(i)[found] for i, found in enumerate(kept)]
    return replace(
        truth,
        values=truth.values[np.concatenate(kept)],
        offsets=np.concatenate([[0], np.cumsum([len(part) for part in moments])]).astype(np.int64),
        clock=truth.clock or FRAME,
        moments=np.concatenate(moments),
        cut=tuple(few),
    )


def are_few(apart: int, rows: int) -> bool:
    """Whether a clip with this number of label rows may have so many more or less."""
    return apart <= max(FEW_ROWS, FEW_SHARE * rows)


def some_clips(said: Sequence[str]) -> str:
    """Return the number of clips, and what is said of the first five."""
    return f"{len(said)} clip{'s' * (len(said) > 1)} (first: {'; '.join(said[:5])})"


def labelled_rows(labels: Labels) -> NDArray[np.bool_]:
    """(rows,) whether a row has any label."""
    return np.array(~np.isnan(labels.values).all(axis=1), np.bool_)


def cut_notes(labels: Labels) -> tuple[str, ...]:
    """Return a sentence where clips lack a few rows, with the first five of them."""
    if not labels.cut:
        return ()
    more = "; …" if len(labels.cut) > 5 else ""
    clips = f"{len(labels.cut)} clip{'s' * (len(labels.cut) > 1)}"
    return (f"{clips} cut to the rows that labels and predictions have in common: {'; '.join(labels.cut[:5])}{more}",)


def _numbers(guess: Labels, truth: Labels) -> list[int]:
    """Return the number of each labelled clip among the predictions."""
    there = {label: number for number, label in enumerate(match_clips(guess, truth)) if label is not None}
    refuse_clips(f"{guess.path} lacks", [c for i, c in enumerate(truth.ids) if i not in there], f"of {truth.path}")
    return [there[i] for i in range(len(truth))]


def _matched(guess: Labels, truth: Labels) -> list[NDArray[np.int64]]:
    """Return for each labelled clip the row of the predictions at each of its rows; -1 where there is none."""
    if guess.by_frame != truth.by_frame:
        frames, clips = (guess, truth) if guess.by_frame else (truth, guess)
        raise LabelError(f"{frames.path} has rows per frame, and {clips.path} one row per clip; both need the same")
    numbers = _numbers(guess, truth)
    if not truth.by_frame:
        return [np.array(numbers, np.int64)]
    if (guess.clock == "time") != (truth.clock == "time"):
        timed, other = (guess, truth) if guess.clock == "time" else (truth, guess)
        raise LabelError(
            f"{timed.path} has the times of its rows, and {other.path} numbers of frames; both need the same column "
            f"beside {FILENAME}"
        )
    assert guess.offsets is not None
    found = []
    for i, number in enumerate(numbers):
        given, wanted = np.append(guess.moments_of(number), np.inf), truth.moments_of(i)
        at = np.searchsorted(given[:-1], wanted - SAME_MOMENT)
        same = np.abs(given[at] - wanted) <= SAME_MOMENT
        found.append(np.where(same, guess.offsets[number] + at, -1))
    return found


def refuse_clips(what: str, clips: Sequence[str], where: str) -> None:
    """Raise a LabelError that names the first five of some clips; without any, do nothing."""
    if clips:
        raise LabelError(f"{what} {len(clips)} clips {where} (first: {', '.join(clips[:5])})")
