"""Groups of clips that belong together, speakers above all: splits share none, and folds are cut along them."""

import itertools
from collections.abc import Sequence

import numpy as np

from train_head.errors import LabelError

Rows = list[int]
PARTS = 5
"""Folds of the training split in `official_folds`."""


def check_disjoint(train_groups: Sequence[str], valid_groups: Sequence[str]) -> None:
    """Refuse splits with common groups: a head that knows a speaker already is judged too well.

    Args:
        train_groups: group of each training clip.
        valid_groups: group of each validation clip.

    Raises:
        LabelError: says how many groups are in both, and names the first five.
    """
    both = sorted(set(train_groups) & set(valid_groups))
    if both:
        raise LabelError(
            f"{len(both)} of the {len(set(valid_groups))} validation groups are in the training split too "
            f"(first: {', '.join(both[:5])}); keep each group in one split"
        )


def speaker_folds(groups: Sequence[str], folds: int, seed: int) -> list[tuple[Rows, Rows]]:
    """Cut clips into folds that share no group, of as equal numbers of clips as whole groups allow.

    The largest group goes first, each to the smallest fold so far (scikit-learn's `GroupKFold`). The seed decides in
    which order groups of one size go; where all sizes differ, every seed gives the same folds.

    Args:
        groups: the group of each clip.
        folds: number of folds; 2 or more.
        seed: of the order of equally large groups.

    Returns:
        Per fold the rows to train on and the rows to validate on, both ascending.

    Raises:
        LabelError: fewer than 2 folds, or more folds than groups.
    """
    from sklearn.model_selection import GroupKFold

    names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    if folds < 2:
        raise LabelError(f"cross-validation needs at least 2 folds, got {folds}")
    if folds > len(names):
        raise LabelError(
            f"{folds} folds need as many groups, and there are {len(names)}: {', '.join(names[:5])}; give fewer folds, "
            "or more clips"
        )
    shuffled = np.random.default_rng(seed).permutation(len(names))[codes]
    split = GroupKFold(n_splits=folds).split(np.zeros((len(codes), 1)), groups=shuffled)
    return [(train.tolist(), valid.tolist()) for train, valid in split]


def official_folds(names: Sequence[str], groups: Sequence[str] | None, valid: int) -> list[tuple[Rows, Rows]]:
    """Cut training clips into five folds in the order of their names, and take the validation clips as the sixth.

    The folds are of equal numbers of clips but for their borders, which move to where the next group begins. Clips of
    one group are neighbours.

    Args:
        names: of the training clips.
        groups: of the training clips; None where each is a group.
        valid: number of validation clips, which follow the training clips.

    Returns:
        Per fold the rows to train on and the rows to validate on, both ascending.

    Raises:
        LabelError: there are too few groups.
    """
    units = names if groups is None else groups
    order = sorted(range(len(names)), key=lambda i: (units[i], names[i]))
    borders = [0]
    for part in range(1, PARTS):
        border = part * len(names) // PARTS
        while 0 < border < len(names) and units[order[border]] == units[order[border - 1]]:
            border += 1
        borders.append(border)
    parts = [sorted(order[a:b]) for a, b in itertools.pairwise([*borders, len(names)])]
    if not all(parts):
        what = "clips" if groups is None else f"groups of clips ({', '.join(sorted(set(units))[:5])})"
        raise LabelError(
            f"the training split is cut into {PARTS} folds, and its {len(set(units))} {what} are too few; give "
            "--folds N with a smaller number"
        )
    parts.append(list(range(len(names), len(names) + valid)))
    return [(sorted({*range(len(names) + valid)} - {*part}), part) for part in parts]
