"""Metrics against SciPy and torchmetrics, and what happens where they are undefined."""

import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional

from train_head.metrics import concordance, evaluate, pearson


def columns(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.uniform(size=n)
    return 0.3 * target + 0.2 * rng.normal(size=n) + 0.1, target


def test_pearson_equals_scipy():
    a, b = columns()
    assert pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic, abs=1e-12)


def test_concordance_equals_torchmetrics():
    a, b = columns()
    expected = torchmetrics.functional.concordance_corrcoef(torch.tensor(a), torch.tensor(b)).item()
    assert concordance(a, b) == pytest.approx(expected, abs=0.01)  # torchmetrics uses sample moments
    assert concordance(b, b) == pytest.approx(1.0)


def test_pearson_is_computed_in_float64():
    a, b = columns()
    shifted = (a.astype(np.float32) + np.float32(0)).astype(np.float64) + 1e6
    assert pearson(shifted, b) == pytest.approx(pearson(a, b), abs=1e-6)


def test_tiny_spreads_do_not_underflow():
    a, b = columns()
    assert pearson(a * 1e-300, b) == pytest.approx(pearson(a, b), abs=1e-9)


@pytest.mark.parametrize("constant", ["predicted", "target"])
def test_a_constant_column_is_undefined(constant):
    a, b = columns()
    flat = np.full_like(a, 0.1)
    assert pearson(*((flat, b) if constant == "predicted" else (a, flat))) is None


def test_one_clip_is_undefined():
    assert pearson([0.3], [0.4]) is None


def test_the_mean_leaves_undefined_targets_out_and_says_so():
    a, b = columns()
    report = evaluate(np.stack([a, a], 1), np.stack([b, np.zeros_like(b)], 1), ["Joy", "Empathic Pain"])
    assert report.mean_pearson == pytest.approx(pearson(a, b))
    assert report.undefined == ("Empathic Pain",)
    assert "undef" in report.table()
    assert "over the other 1 of 2" in report.table()
    assert report.to_dict()["pearson"]["Empathic Pain"] is None


def test_nothing_defined_gives_no_mean():
    flat = np.zeros((5, 2))
    assert evaluate(flat, flat, ["a", "b"]).mean_pearson is None


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        evaluate(np.zeros((3, 2)), np.zeros((4, 2)), ["a", "b"])
