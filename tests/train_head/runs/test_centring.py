"""CCC centring of several predictions."""

import numpy as np
import pytest

from train_head.runs.centring import agreements, centred_mean


def ccc(x, y):
    return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_each_prediction_is_moved_to_the_level_of_those_that_agree_most():
    rng = np.random.default_rng(0)
    signal = np.cumsum(rng.normal(size=80)) / 5
    values = np.stack([signal + rng.normal(size=80) / 4 + level for level in (0, 0.1, 2)])[:, :, None]
    weights = [0.5, 0.25, 0.25]
    expected = []
    for part in (slice(0, 30), slice(30, 80)):
        runs = values[:, part, 0]
        agreement = np.array([np.mean([ccc(runs[i], runs[j]) for j in range(3) if j != i]) for i in range(3)])
        np.testing.assert_allclose(agreements(runs), agreement, atol=1e-12)
        assert agreement.argmin() == 2
        level = (agreement * runs.mean(1)).sum() / agreement.sum()
        centred = [run - run.mean() + level for run in runs]
        expected.append(np.average(centred, axis=0, weights=weights))
    found = centred_mean(values, weights, [30, 0, 50])
    np.testing.assert_allclose(found[:, 0], np.concatenate(expected), atol=1e-12)


def test_predictions_that_do_not_agree_are_averaged_plainly():
    x = np.array([0.0, 1, 2, 3])
    values = np.stack([x, -x])[:, :, None]
    np.testing.assert_array_equal(centred_mean(values, [0.5, 0.5], [4]), np.zeros((4, 1)))
    constant = np.stack([np.zeros(4), np.ones(4)])[:, :, None]
    assert centred_mean(constant, [0.5, 0.5], [4]).ravel().tolist() == [0.5] * 4
    assert agreements(np.zeros((2, 3))).tolist() == [0, 0]


def test_equal_predictions_stay_as_they_are():
    x = np.random.default_rng(0).normal(size=(20, 2))
    np.testing.assert_allclose(centred_mean(np.stack([x, x]), [0.5, 0.5], [20]), x, atol=1e-12)
    assert agreements(np.stack([x[:, 0]] * 3)) == pytest.approx([1, 1, 1])
