"""Bootstrap intervals against plain loops over drawn clips, SciPy's bootstrap, and the truth in simulations."""

import numpy as np
import pytest
import scipy.stats

from train_head.errors import LabelError
from train_head.evaluation.intervals import Difference, bootstrap, paired_bootstrap
from train_head.evaluation.metrics import absolute_error, concordance, evaluate, pearson
from train_head.evaluation.resampling import draws, resampled

NAMES = ("Joy", "Calm", "Fear")


def column(difference: Difference, key: str) -> tuple[float | None, ...]:
    """Return one value of each target."""
    return tuple(row[key] for row in difference.targets.values())


def material(clips: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and labels of three targets, as float32 from files would be."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(size=(clips, 3))
    predicted = target * [0.9, 0.5, 0.1] + rng.normal(scale=0.3, size=(clips, 3)) + 5
    return predicted.astype(np.float32), target.astype(np.float32)


def by_indexing(predicted: np.ndarray, target: np.ndarray, members: list[np.ndarray], resamples: int, seed: int):
    """(resamples, targets) with NumPy's own corrcoef on clips that are really copied."""
    rows = []
    for counts in np.concatenate(list(draws(len(members), resamples, seed))).astype(int):
        drawn = np.concatenate([np.tile(members[unit], times) for unit, times in enumerate(counts)])
        rows.append([np.corrcoef(predicted[drawn, k], target[drawn, k])[0, 1] for k in range(target.shape[1])])
    return np.array(rows)


def test_resampled_correlations_equal_those_of_clips_drawn_one_by_one():
    predicted, target = material()
    expected = by_indexing(predicted, target, [np.array([i]) for i in range(60)], 50, seed=3)
    np.testing.assert_allclose(resampled([predicted], target, resamples=50, seed=3)[:, 0], expected, atol=1e-9)


def test_groups_are_drawn_as_wholes():
    predicted, target = material()
    groups = [f"speaker {i * i % 7}" for i in range(60)]
    members = [np.flatnonzero(np.array(groups) == name) for name in sorted(set(groups))]
    expected = by_indexing(predicted, target, members, 50, seed=1)
    np.testing.assert_allclose(resampled([predicted], target, groups, 50, 1)[:, 0], expected, atol=1e-9)


def test_every_resample_draws_as_many_as_there_are():
    counts = np.concatenate(list(draws(2_000, 1_100, seed=0)))
    assert counts.shape == (1_100, 2_000)
    assert (counts.sum(1) == 2_000).all()
    assert abs(counts.var() - 1) < 0.01  # multinomial


def test_bounds_are_the_percentiles_of_the_resamples_for_each_target_and_the_mean():
    predicted, target = material()
    found = bootstrap(predicted, target, NAMES, resamples=200, seed=5)
    drawn = by_indexing(predicted, target, [np.array([i]) for i in range(60)], 200, seed=5)
    np.testing.assert_allclose([found.low, found.high], np.percentile(drawn, [2.5, 97.5], axis=0), atol=1e-9)
    expected = np.percentile(drawn.mean(1), [2.5, 97.5])
    np.testing.assert_allclose([found.mean_low, found.mean_high], expected, atol=1e-9)
    assert (found.clips, found.groups, found.resamples, found.left_out) == (60, None, 200, (0, 0, 0))


def test_the_interval_is_close_to_scipys_percentile_bootstrap():
    predicted, target = material(300)
    found = bootstrap(predicted, target, NAMES, resamples=4000)
    expected = scipy.stats.bootstrap(
        (predicted[:, 1].astype(float), target[:, 1].astype(float)),
        lambda a, b, axis: scipy.stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low[1], found.high[1]) == pytest.approx(tuple(expected), abs=0.01)


def test_about_95_of_100_intervals_cover_the_true_correlation():
    rng = np.random.default_rng(0)
    truth, trials = 0.6, 300
    samples = rng.multivariate_normal([0, 0], [[1, truth], [truth, 1]], size=(trials, 120))
    found = [bootstrap(s[:, :1], s[:, 1:], ["x"], resamples=400, seed=i) for i, s in enumerate(samples)]
    covered = sum(interval.low[0] <= truth <= interval.high[0] for interval in found)
    assert 0.90 * trials <= covered <= 0.985 * trials


def test_clips_of_one_speaker_count_as_little_more_than_one():
    predicted, target = material(20)
    copied = [np.repeat(values, 10, axis=0) for values in (predicted, target)]
    speakers = np.repeat(np.arange(20), 10).astype(str).tolist()
    alone = bootstrap(predicted, target, NAMES)
    naive, grouped = bootstrap(*copied, NAMES), bootstrap(*copied, NAMES, groups=speakers)
    assert grouped.groups == 20
    widths = [i.high[1] - i.low[1] for i in (alone, grouped, naive)]
    assert widths[1] == pytest.approx(widths[0], rel=0.15)
    assert widths[2] < 0.5 * widths[1]


def test_resamples_in_which_a_label_is_constant_are_left_out_and_counted():
    predicted, target = material(12)
    target[:, 2] = 0
    target[4, 2] = 1
    found = bootstrap(predicted, target, NAMES, resamples=500)
    without = sum(int((counts[:, 4] == 0).sum()) for counts in draws(12, 500, 0))
    only = sum(int((counts[:, 4] == 12).sum()) for counts in draws(12, 500, 0))
    assert found.left_out == (0, 0, without + only)
    assert found.mean_left_out == without + only > 100
    assert f"Fear {without}" in " ".join(found.notes)
    drawn = resampled([predicted], target, resamples=500)[:, 0, 2]
    assert found.low[2] == pytest.approx(np.nanpercentile(drawn, 2.5))


def test_a_constant_column_has_no_interval_and_leaves_the_mean_to_the_others():
    predicted, target = material()
    predicted[:, 0] = 0.1
    found = bootstrap(predicted, target, NAMES, resamples=100)
    rest = bootstrap(predicted[:, 1:], target[:, 1:], NAMES[1:], resamples=100)
    assert (found.low[0], found.high[0], found.left_out[0]) == (None, None, 100)
    assert (found.mean_low, found.mean_high) == pytest.approx((rest.mean_low, rest.mean_high))
    assert found.to_dict()["pearson"]["Joy"] == [None, None]
    assert "undef undef" in evaluate(predicted, target, NAMES).table(found)


def test_an_outlier_that_dwarfs_the_rest_costs_no_digits():
    predicted, target = material(30)
    predicted[7, 0] = 1e9
    expected = by_indexing(predicted.astype(float), target.astype(float), [np.array([i]) for i in range(30)], 40, 0)
    drawn = resampled([predicted], target, resamples=40)[:, 0]
    np.testing.assert_allclose(drawn[:, 0], expected[:, 0], atol=1e-6)


def test_a_seed_gives_the_same_interval_again():
    predicted, target = material()
    assert bootstrap(predicted, target, NAMES, seed=4) == bootstrap(predicted, target, NAMES, seed=4)
    assert bootstrap(predicted, target, NAMES, seed=4) != bootstrap(predicted, target, NAMES, seed=5)


def test_the_paired_difference_is_that_of_both_on_the_same_drawn_clips():
    predicted, target = material()
    other = predicted + np.random.default_rng(9).normal(scale=0.2, size=predicted.shape)
    found = paired_bootstrap(predicted, other, target, NAMES, resamples=200, seed=2)
    clips = [np.array([i]) for i in range(60)]
    drawn = by_indexing(predicted, target, clips, 200, 2) - by_indexing(other, target, clips, 200, 2)
    np.testing.assert_allclose(
        [column(found, "low"), column(found, "high")], np.percentile(drawn, [2.5, 97.5], axis=0), atol=1e-9
    )
    np.testing.assert_allclose(column(found, "difference"), np.subtract(column(found, "a"), column(found, "b")))
    assert column(found, "a_better") == pytest.approx((drawn > 0).mean(0))
    sides = np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))
    np.testing.assert_allclose(column(found, "p"), np.minimum(1, 2 * (sides + 1) / 201))
    mean = drawn.mean(1)
    np.testing.assert_allclose([found.mean["low"], found.mean["high"]], np.percentile(mean, [2.5, 97.5]), atol=1e-9)
    assert found.mean["difference"] == pytest.approx(np.mean(column(found, "difference")))


def test_a_prediction_does_not_differ_from_itself():
    predicted, target = material()
    found = paired_bootstrap(predicted, predicted, target, NAMES)
    assert column(found, "difference") == column(found, "low") == column(found, "high") == (0, 0, 0)
    assert column(found, "p") == (1, 1, 1)
    assert found.mean["p"] == 1


def test_a_clear_difference_has_a_small_p_that_is_not_zero():
    _, target = material(200)
    noise = np.random.default_rng(1).normal(size=target.shape)
    found = paired_bootstrap(target, noise, target, NAMES, resamples=500)
    assert column(found, "p") == pytest.approx((2 / 501,) * 3)
    assert column(found, "a_better") == (1, 1, 1)
    assert "0.0040" in found.table()
    assert found.to_dict()["targets"]["Joy"]["low"] > 0.5


def test_p_is_below_5_percent_in_about_5_percent_of_comparisons_of_equals():
    rng = np.random.default_rng(0)
    trials, small = 300, 0
    for seed in range(trials):
        target = rng.normal(size=(150, 1))
        a, b = (target + rng.normal(size=target.shape) for _ in range(2))
        small += column(paired_bootstrap(a, b, target, ["x"], resamples=300, seed=seed), "p")[0] < 0.05
    assert 0.02 * trials <= small <= 0.09 * trials


def test_what_is_undefined_for_one_of_two_is_undefined_between_them():
    predicted, target = material()
    flat = predicted.copy()
    flat[:, 1] = 0.5
    found = paired_bootstrap(predicted, flat, target, NAMES, resamples=50)
    assert (column(found, "b")[1], column(found, "difference")[1], column(found, "p")[1]) == (None, None, None)
    assert found.left_out == (0, 50, 0)
    assert found.mean["a"] == pytest.approx(np.mean([column(found, "a")[0], column(found, "a")[2]]))


def test_one_group_only_is_refused():
    predicted, target = material()
    with pytest.raises(LabelError, match="all 60 clips are of one group, 'anna'"):
        bootstrap(predicted, target, NAMES, groups=["anna"] * 60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["a", "b"]}, "2 groups for 60 clips"),
        ({"resamples": 0}, "resamples must be above 0"),
        ({"names": ("a", "b")}, r"expected both \(clips, 2\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    predicted, target = material()
    with pytest.raises(ValueError, match=message):
        bootstrap(predicted, target, **({"names": NAMES} | arguments))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("metric", "function"), [("pearson", pearson), ("ccc", concordance), ("mae", absolute_error)])
def test_resamples_of_any_metric_equal_those_of_clips_drawn_one_by_one(metric, function, grouped):
    predicted, target = material(40)
    target[::3, 1], target[5:, 2] = np.nan, np.nan
    groups = [f"s{i // 5}" for i in range(40)] if grouped else None
    members = [np.arange(i, i + 5) for i in range(0, 40, 5)] if grouped else [np.array([i]) for i in range(40)]
    rows = []
    for counts in np.concatenate(list(draws(len(members), 60, 2))).astype(int):
        drawn = np.concatenate([np.tile(members[unit], times) for unit, times in enumerate(counts)])
        values = [function(predicted[drawn, k], target[drawn, k]) for k in range(3)]
        rows.append([np.nan if value is None else value for value in values])
    assert np.isnan(rows).any()
    found = resampled([predicted, predicted * 2], target, groups, 60, 2, metric)
    np.testing.assert_allclose(found[:, 0], rows, atol=1e-9)


def test_missing_labels_are_drawn_with_their_clips_and_not_counted():
    predicted, target = material()
    target[::4, 0] = np.nan
    found = bootstrap(predicted, target, NAMES, resamples=200)
    whole = bootstrap(predicted, np.nan_to_num(target), NAMES, resamples=200)
    assert (found.counts, found.clips) == ((45, 60, 60), 60)
    assert (found.low[1:], found.high[1:]) == (pytest.approx(whole.low[1:]), pytest.approx(whole.high[1:]))
    alone = bootstrap(predicted[np.arange(60) % 4 > 0, :1], target[np.arange(60) % 4 > 0, :1], ["x"], resamples=200)
    assert (found.low[0], found.high[0]) == pytest.approx((alone.low[0], alone.high[0]), abs=0.05)
