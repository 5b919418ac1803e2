"""Tests between two predictions against plain loops over every exchange, and against the truth in simulations."""

from itertools import product

import numpy as np
import pytest

from train_head.evaluation.intervals import Difference, bootstrap, choose_test, paired_bootstrap
from train_head.evaluation.metrics import absolute_error, concordance, mean_of, pearson
from train_head.evaluation.resampling import exchanges

NAMES = ("Joy", "Calm")
METRICS = {"pearson": pearson, "ccc": concordance, "mae": absolute_error}


def column(difference: Difference, key: str) -> tuple[float | None, ...]:
    """Return one value of each target."""
    return tuple(row[key] for row in difference.targets.values())


def material(groups: int, each: int = 6, seed: int = 0, missing: bool = False):
    """Two predictions, labels and groups of unequal size; the groups differ in level."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"g{i}" for i in range(groups)], [each + i % 3 for i in range(groups)])
    target = rng.uniform(size=(len(names), 2))
    target += np.repeat(rng.normal(scale=0.5, size=groups), [each + i % 3 for i in range(groups)])[:, None]
    a = target + rng.normal(scale=0.6, size=target.shape)
    b = 3 * target + rng.normal(scale=2.4, size=target.shape) - 1
    if missing:
        target[::4, 1] = np.nan
        target[names == "g0", 1] = np.nan
    return a, b, target, names.tolist()


def by_loop(a, b, target, groups, metric: str) -> list[float]:
    """p of each target and of their mean: every assignment is made and scored, one by one."""
    known = ~np.isnan(target)
    if metric == "pearson":
        a, b = (
            np.stack([(p[:, k] - p[known[:, k], k].mean()) / p[known[:, k], k].std() for k in range(2)], 1)
            for p in (a, b)
        )
    units = groups if groups is not None else [str(i) for i in range(len(a))]
    names = sorted(set(units))
    found = []
    for flips in product([False, True], repeat=len(names)):
        turned = np.array([flips[names.index(unit)] for unit in units])[:, None]
        sides = np.where(turned, b, a), np.where(turned, a, b)
        one, other = ([METRICS[metric](p[:, k], target[:, k]) for k in range(2)] for p in sides)
        found.append([x - y for x, y in zip([*one, mean_of(one)], [*other, mean_of(other)], strict=True)])
    size = np.abs(found)
    return [float((size[:, k] >= size[0, k] - 1e-9).mean()) for k in range(3)]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_over_few_groups_p_is_that_of_all_exchanges(metric, missing):
    a, b, target, groups = material(5, missing=missing)
    found = paired_bootstrap(a, b, target, NAMES, groups, resamples=50, metric=metric)
    assert [*column(found, "p"), found.mean["p"]] == pytest.approx(by_loop(a, b, target, groups, metric), abs=1e-12)
    assert (found.test.name, found.test.number, found.test.least) == ("exact sign-flip", 32, 2 / 32)


def test_few_clips_without_groups_are_exchanged_one_by_one():
    a, b, target, _ = material(2, each=3)
    found = paired_bootstrap(a, b, target, NAMES, resamples=50)
    assert [*column(found, "p"), found.mean["p"]] == pytest.approx(by_loop(a, b, target, None, "pearson"), abs=1e-12)
    assert "test over 7 clips" in found.table()


@pytest.mark.parametrize("metric", METRICS)
def test_over_four_groups_p_is_never_below_an_eighth(metric):
    _, _, target, groups = material(4, each=30)
    worse = np.random.default_rng(1).normal(size=target.shape) + 5
    found = paired_bootstrap(target, worse, target, NAMES, groups, metric=metric)
    assert [*column(found, "p"), found.mean["p"]] == [0.125] * 3
    text = found.table()
    assert "exact sign-flip test over 4 groups with all 16 exchanges" in text
    assert "cannot go below 0.125" in text
    assert "warning: only 4 groups: the bootstrap intervals of fewer than 10 are too narrow" in text
    assert (
        "warning: interval and p disagree on whether the difference could be 0 for Joy, Calm, mean over targets" in text
    )
    assert found.to_dict()["test"] == {"name": "exact sign-flip", "units": 4, "number": 16, "least_p": 0.125}
    assert len(found.to_dict()["warnings"]) == 2


def test_over_many_groups_exchanges_are_drawn_and_close_to_all_of_them():
    a, b, target, groups = material(12, each=3, seed=3)
    exact = paired_bootstrap(a, b, target, NAMES, groups, resamples=10)
    assert exact.test.name == "exact sign-flip"
    with pytest.MonkeyPatch.context() as patch:
        for module in ("intervals", "resampling"):
            patch.setattr(f"train_head.evaluation.{module}.EXACT_UNITS", 3)
        drawn = paired_bootstrap(a, b, target, NAMES, groups, resamples=4000)
    assert drawn.test.name == "random sign-flip"
    assert column(drawn, "p") == pytest.approx(column(exact, "p"), abs=0.03)
    assert "4000 random exchanges" in drawn.table()
    again = paired_bootstrap(a, b, target, NAMES, groups, resamples=10)
    assert again == exact


def test_many_groups_without_an_interval_warning_have_none():
    a, b, target, groups = material(16, each=3)
    found = paired_bootstrap(a, b, target, NAMES, groups, resamples=100)
    assert found.test.name == "random sign-flip"
    assert bootstrap(a, target, NAMES, groups, resamples=100).warnings == ()
    assert "too narrow" not in found.table()


def test_every_exchange_comes_once_but_for_its_mirror_image():
    (found,) = exchanges(4, 7, 0)
    assert found.shape == (8, 4)
    assert not found[0].any()
    both = {tuple(row) for row in np.concatenate([found, 1 - found]).astype(int).tolist()}
    assert both == set(product([0, 1], repeat=4))


def test_a_target_with_few_labels_is_not_tested_as_if_it_had_many():
    target = np.random.default_rng(0).uniform(size=(100, 1))
    right, wrong = target.copy(), target + 5
    target[5:] = np.nan
    found = paired_bootstrap(right, wrong, target, ["Joy"], resamples=1000, metric="mae")
    assert found.test.name == "random sign-flip"
    assert column(found, "p")[0] == pytest.approx(2 / 2**5, abs=0.02)
    assert choose_test(100, [100, 15], None, 10).name == "bootstrap"


def test_groups_that_lack_labels_do_not_count_as_evidence():
    a, b, target, groups = material(12, each=3)
    target[[i for i, name in enumerate(groups) if name not in ("g1", "g2", "g3", "g4")], 1] = np.nan
    found = bootstrap(a, target, NAMES, groups, resamples=100)
    assert found.group_counts == (12, 4)
    assert found.warnings == (
        "warning: few groups with labels (Calm 4): the bootstrap intervals of fewer than 10 are too narrow",
    )
    better = np.nan_to_num(target)
    assert column(paired_bootstrap(better, b, target, NAMES, groups, resamples=100), "p")[1] >= 2 / 2**4


@pytest.mark.parametrize(("groups", "scale"), [(4, 1.0), (8, 1.0), (8, 0.2), (20, 1.0)])
def test_p_is_below_5_percent_in_at_most_about_5_percent_of_comparisons_of_equals(groups, scale):
    rng = np.random.default_rng(groups)
    names = np.repeat(np.arange(groups), 8).astype(str)
    trials, small = 200, 0
    for seed in range(trials):
        level = np.repeat(rng.normal(size=(groups, 1)), 8, axis=0)
        target = level + rng.normal(size=level.shape)
        noise = [np.repeat(rng.normal(size=(groups, 1)), 8, axis=0) + rng.normal(size=level.shape) for _ in range(2)]
        a, b = target + noise[0], scale * (target + noise[1]) + 2 * (1 - scale)
        small += column(paired_bootstrap(a, b, target, ["x"], names, resamples=99, seed=seed), "p")[0] < 0.05
    assert small <= 0.09 * trials
    assert small >= (0.015 * trials if groups > 5 else 0)


def test_a_lower_error_is_better():
    rng = np.random.default_rng(0)
    target = rng.uniform(size=(40, 2))
    near, far = target + 0.1, target + rng.choice([-0.3, 0.3], size=target.shape)
    found = paired_bootstrap(near, far, target, NAMES, resamples=200, metric="mae")
    assert column(found, "difference") == pytest.approx((-0.2, -0.2))
    assert (column(found, "a_better"), found.higher_is_better) == ((1, 1), False)
    assert found.mean["high"] < 0
    assert "MAE: A is better where A - B is below 0" in found.table()
    assert paired_bootstrap(near, far, target, NAMES, resamples=200).mean["a_better"] == 1
