"""Metrics against SciPy and torchmetrics, and what happens where they are undefined."""

import numpy as np
import pytest
import scipy.stats
import torch
import torchmetrics.functional

from train_head.evaluation.metrics import CHANCE, concordance, evaluate, label_means, mean_of, pearson


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
@pytest.mark.parametrize("metric", [pearson, concordance])
def test_a_constant_column_is_undefined(metric, constant):
    a, b = columns()
    flat = np.full_like(a, 0.1)
    assert metric(*((flat, b) if constant == "predicted" else (a, flat))) is None


@pytest.mark.parametrize("metric", [pearson, concordance])
def test_fewer_than_three_clips_are_undefined_as_two_points_always_lie_on_a_line(metric):
    assert metric([0.3], [0.4]) is None
    assert metric([0.3, 0.1], [0.4, 0.7]) is None
    assert metric([0.3, 0.1, 0.2], [0.4, 0.7, 0.1]) is not None


def test_the_mean_leaves_undefined_targets_out_and_says_so():
    a, b = columns()
    report = evaluate(np.stack([a, a], 1), np.stack([b, np.zeros_like(b)], 1), ["Joy", "Empathic Pain"])
    assert report.mean_pearson == pytest.approx(pearson(a, b))
    assert report.mean_concordance == pytest.approx(concordance(a, b))
    assert report.mean_mae == pytest.approx((np.abs(a - b).mean() + np.abs(a).mean()) / 2)
    assert report.undefined == ("Empathic Pain",)
    assert "undef" in report.table()
    assert "over the other 1 of 2" in report.table()
    found = report.to_dict()
    assert found["pearson"]["Empathic Pain"] is None
    assert found["concordance"]["Empathic Pain"] is None
    assert found["mean_concordance"] == report.mean_concordance
    assert found["mean_mae"] == report.mean_mae


def test_nothing_defined_gives_no_mean():
    flat = np.zeros((5, 2))
    report = evaluate(flat, flat, ["a", "b"])
    assert (report.mean_pearson, report.mean_concordance) == (None, None)
    assert "there is no mean" in report.table()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\)"):
        evaluate(np.zeros((3, 2)), np.zeros((4, 2)), ["a", "b"])


@pytest.mark.parametrize(
    ("clips", "said"), [(2, "1 or -1 whatever was predicted"), (4, "up to 0.95"), (9, "up to 0.67")]
)
def test_few_clips_are_warned_of(clips, said):
    a, b = columns(n=clips)
    report = evaluate(a[:, None], b[:, None], ["Joy"])
    assert f"warning: only {clips} clips: with {'fewer than 3' if clips == 2 else clips}" in report.table()
    assert said in report.table()
    assert report.to_dict()["notes"] == list(report.notes)


def test_ten_clips_are_not_warned_of():
    a, b = columns(n=10)
    assert evaluate(a[:, None], b[:, None], ["Joy"]).notes == ()


@pytest.mark.parametrize("clips", CHANCE)
def test_the_correlation_of_chance_is_that_of_students_t(clips):
    t = scipy.stats.t.ppf(0.975, clips - 2)
    assert CHANCE[clips] == pytest.approx(t / np.sqrt(clips - 2 + t * t), abs=5e-4)


def test_constant_predictions_stand_below_the_figures_on_the_labels_scale():
    target = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, np.nan], [9.0, 30.0]])
    report = evaluate(target / 2, target, ["Joy", "Calm"], train_mean=[3.0, 25.0])
    lines = {line.split("  ")[0]: line.split() for line in report.table().splitlines()}
    assert lines["mean of the training labels"][-3:] == [
        "undef",
        "undef",
        f"{(np.mean([2, 1, 1, 6]) + 25 / 3) / 2:.3f}",
    ]
    assert lines["all zeros"][-3:] == ["undef", "undef", f"{(4 + 20) / 2:.3f}"]
    found = report.to_dict()["baselines"]
    assert found["all zeros"] == {"mean_mae": 12.0, "mae": {"Joy": 4.0, "Calm": 20.0}}
    assert list(found) == ["mean of the training labels", "all zeros"]


def test_without_training_labels_only_zeros_are_a_baseline():
    a, b = columns()
    report = evaluate(a[:, None], b[:, None], ["Joy"])
    assert list(report.baselines) == ["all zeros"]
    assert mean_of(report.baselines["all zeros"]) == pytest.approx(b.mean())
    assert "mean of the training" not in report.table()


def test_a_target_that_no_training_clip_has_has_no_baseline():
    a, b = columns()
    means = label_means(np.stack([b, np.full_like(b, np.nan)], 1))
    report = evaluate(np.stack([a, a], 1), np.stack([b, b], 1), ["Joy", "Calm"], means)
    assert report.baselines["mean of the training labels"] == (pytest.approx(np.abs(b - b.mean()).mean()), None)


def test_missing_labels_are_left_out_per_target_and_counted():
    a, b = columns(n=40)
    target, predicted = np.stack([b, b], 1), np.stack([a, a * 0.5], 1)
    gone = np.arange(40) % 3 == 1
    target[gone, 1] = np.nan
    report = evaluate(predicted, target, ["Joy", "Calm"])
    known = ~gone
    alone = evaluate(predicted[known, 1:], target[known, 1:], ["Calm"])
    assert report.clips == 40
    assert report.counts == (40, int(known.sum()))
    assert report.pearson == (pearson(a, b), alone.pearson[0])
    assert (report.concordance[1], report.mae[1]) == (alone.concordance[0], alone.mae[0])
    header, joy, calm, *_ = report.table().splitlines()
    assert (header.split()[0], joy.split()[1], calm.split()[1]) == ("clips", "40", str(known.sum()))
    assert report.to_dict()["counts"] == {"Joy": 40, "Calm": int(known.sum())}
    assert "clips" not in evaluate(predicted, np.nan_to_num(target), ["Joy", "Calm"]).table().splitlines()[0]


def test_targets_with_few_labels_or_none_are_named():
    a, b = columns(n=40)
    target = np.stack([b, b, b], 1)
    target[2:, 1], target[:, 2] = np.nan, np.nan
    report = evaluate(np.stack([a, a, a], 1), target, ["Joy", "Calm", "Fear"])
    assert report.undefined == ("Calm", "Fear")
    assert (report.mae[2], report.mean_mae) == (None, pytest.approx(np.mean(report.mae[:2])))
    text = report.table()
    assert "undefined for Calm, Fear (fewer than 3 labelled clips); the mean is over the other 1 of 3" in text
    assert "warning: few labelled clips (Calm 2, Fear 0)" in text


def test_no_two_lines_of_a_table_are_called_mean():
    a, b = columns()
    report = evaluate(a[:, None], b[:, None], ["Joy"], [0.5])
    for text in (report.table(), report.markdown()):
        firsts = [line.split("  ")[0].strip("|* ").split(" |")[0].strip("* ") for line in text.splitlines()]
        assert "mean" not in firsts
        assert "mean over targets" in firsts
