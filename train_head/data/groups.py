"""Groups of clips that belong together, speakers above all: splits share none, and folds are cut along them."""

from collections.abc import Sequence

import numpy as np

from train_head.errors import LabelError

Rows = list[int]


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
        raise LabelError(f"{folds} folds need as many groups, and there are {len(names)}: {', '.join(names[:5])}")
    shuffled = np.random.default_rng(seed).permutation(len(names))[codes]
    split = GroupKFold(n_splits=folds).split(np.zeros((len(codes), 1)), groups=shuffled)
    return [(train.tolist(), valid.tolist()) for train, valid in split]
