"""A missing label counts in no loss, no weight and no gradient, whatever is predicted there."""

import csv

import numpy as np
import pytest
import torch

import emi
from train_head.data.labels import read_labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.losses import LOSSES, build_objective
from train_head.losses.objective import build_weights
from train_head.protocols.pool import pool, trainable
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings

CLIPS, TARGETS = 14, 3
EVERY_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))
OBJECTIVES = ["0.7*ccc + 0.3*mse", "pearson + 2*mae", "zero_inflated + 0.5*ccc", "balanced_mse + focal_r", "huber"]


def batch(outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions, labels a third of which are missing, and weights; float64."""
    rng = np.random.default_rng(seed)
    target = np.maximum(rng.uniform(-0.5, 1, (CLIPS, TARGETS)), 0)
    target[rng.uniform(size=target.shape) < 0.35] = np.nan
    predicted = rng.normal(0.3, 0.4, (CLIPS, TARGETS * outputs))
    return tuple(torch.tensor(x) for x in (predicted, target, rng.uniform(0.2, 3, target.shape)))


def alone(name: str, predicted: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """The loss put together from single targets, each over the clips that have it."""
    loss, parts, shares = LOSSES[name], [], []
    for k in range(TARGETS):
        there = ~target[:, k].isnan()
        columns = predicted[there][:, k::TARGETS]
        own = None if weight is None else weight[there, k : k + 1]
        parts.append(loss(columns, target[there, k : k + 1], own))
        shares.append(there.sum() if own is None else own.sum())
    if name in ("pearson", "ccc"):
        return torch.stack(parts).mean()
    share = torch.stack(shares).to(predicted)
    return (torch.stack(parts) * share).sum() / share.sum()


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"zero_inflated"}))  # two means, over different labels
@pytest.mark.parametrize("weighted", [False, True])
def test_value_and_gradient_are_those_of_the_labels_that_are_there(name, weighted):
    p, t, w = batch(LOSSES[name].outputs)
    w = w if weighted else None
    found, wanted = p.clone().requires_grad_(), p.clone().requires_grad_()
    value, expected = LOSSES[name](found, t, w), alone(name, wanted, t, w)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(found.grad, wanted.grad)


@EVERY_LOSS
@pytest.mark.parametrize("weighted", [False, True])
def test_clips_without_any_label_are_as_if_left_out(name, weighted):
    p, t, w = batch(LOSSES[name].outputs)
    t = t.nan_to_num(0.25)
    t[[0, 3, 4]] = torch.nan
    rows = [i for i in range(CLIPS) if i not in (0, 3, 4)]
    one, other = p.clone().requires_grad_(), p.clone().requires_grad_()
    LOSSES[name](one, t, w if weighted else None).backward()
    LOSSES[name](other[rows], t[rows], w[rows] if weighted else None).backward()
    torch.testing.assert_close(one.grad, other.grad)


@EVERY_LOSS
@pytest.mark.parametrize("value", [7.0, 1e30, np.inf, np.nan])
def test_what_is_predicted_for_a_missing_label_changes_nothing(name, value):
    p, t, _ = batch(LOSSES[name].outputs)
    other = torch.where(t.isnan().repeat(1, LOSSES[name].outputs), value, p).requires_grad_()
    p.requires_grad_()
    losses = [LOSSES[name](x, t) for x in (p, other)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(p.grad, other.grad, rtol=0, atol=0)
    assert not p.grad[t.isnan().repeat(1, LOSSES[name].outputs)].any()


@EVERY_LOSS
@pytest.mark.parametrize("kind", ["no label", "one label", "one target empty"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_labels_give_finite_losses_and_gradients(name, kind, dtype):
    p, t, _ = (x.to(dtype) for x in batch(LOSSES[name].outputs))
    if kind == "one target empty":
        t[:, 1] = torch.nan
    else:
        t[:] = torch.nan
    if kind == "one label":
        t[2, 0] = 0.4
    p.requires_grad_()
    loss = LOSSES[name](p, t)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(p.grad).all()
    if kind == "no label":
        assert loss.item() == 0
        assert not p.grad.any()


@EVERY_LOSS
def test_with_all_labels_there_the_bits_are_those_of_the_plain_formula(name):
    p, t, w = batch(LOSSES[name].outputs)
    t = t.nan_to_num(0.25)
    for weight in (None, w):
        assert torch.equal(LOSSES[name](p, t, weight), LOSSES[name].compute(p, t, weight, **LOSSES[name].options))


@pytest.mark.parametrize("expression", OBJECTIVES)
@pytest.mark.parametrize("weighting", ["none", "lds", "dense(alpha=0.5)"])
def test_sums_and_weights_leave_missing_labels_out(expression, weighting):
    outputs = 2 if "zero" in expression else 1
    p, t, _ = (x.float() for x in batch(outputs))
    objective = build_objective(expression, weighting, t)
    other = torch.where(t.isnan().repeat(1, outputs), torch.nan, p).requires_grad_()
    p.requires_grad_()
    losses = [objective(x, t) for x in (p, other)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
        assert torch.isfinite(loss)
    torch.testing.assert_close(p.grad, other.grad)


@pytest.mark.parametrize("weighting", ["lds", "dense"])
def test_weights_are_counted_over_the_labels_that_are_there(weighting):
    labels = torch.rand(60, 2, generator=torch.Generator().manual_seed(0)).round(decimals=2)
    partial = torch.cat([labels, torch.full((25, 2), torch.nan)])
    full, found = (build_weights(weighting, x) for x in (labels, partial))
    torch.testing.assert_close(found.table, full.table)
    torch.testing.assert_close(found(partial)[:60], full(labels))
    assert torch.isfinite(found(partial)).all()
    empty = build_weights(weighting, torch.full((5, 1), torch.nan))
    assert torch.equal(empty(torch.tensor([[0.3], [torch.nan]])), torch.ones(2, 1))


def test_a_mixed_label_is_missing_where_either_is():
    t = torch.tensor([[0.1, torch.nan], [0.3, 0.2], [torch.nan, 0.5], [0.6, 0.8]])
    frames, lengths = torch.rand(4, 6, 2), torch.full((4,), 6)
    generator = torch.Generator().manual_seed(0)
    mixed = augment_batch(Batch({UNNAMED: Rows(frames, lengths)}, t), AugmentSettings(mixup=0.4), generator).targets
    around = torch.randperm(4, generator=torch.Generator().manual_seed(0))
    partner = torch.empty_like(around).scatter_(0, around, around.roll(1))
    assert torch.equal(mixed.isnan(), t.isnan() | t[partner].isnan())


QUICK = {"head": "mlp", "hidden": 4, "epochs": 2, "precision": "fp32", "device": "cpu"}


@pytest.fixture
def partial(labelled, tmp_path):
    """The labelled clips, of which some training labels are missing, and all of two clips."""
    with (labelled / "train.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    rows = [[clip, "" if i % 3 == 0 else joy, "NA" if i % 4 == 0 else calm] for i, (clip, joy, calm) in enumerate(rows)]
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return tmp_path / "train.csv"


@pytest.mark.parametrize(
    "settings", [{}, {"loss": "balanced_mse + ccc", "weighting": "lds", "augment": {"mixup": 0.2}}]
)
def test_a_head_is_trained_where_labels_are_missing(partial, labelled, labelled_cache, tmp_path, settings):
    run = emi.train_head(labelled_cache, partial, labelled / "valid.csv", tmp_path / "run", **QUICK, **settings)
    assert all(np.isfinite(record["train_loss"]) for record in run.history)
    assert run.skipped == 0
    card = (tmp_path / "run" / "README.md").read_text()
    assert "and 11 are missing" in card
    assert "3 training clips have no label, and were left out" in card


def test_validation_labels_may_be_missing(partial, labelled, labelled_cache, tmp_path):
    run = emi.train_head(labelled_cache, labelled / "valid.csv", partial, tmp_path / "run", **QUICK)
    assert all(np.isfinite(value) for value in run.report.pearson)
    assert all(np.isfinite(run.report.mae))
    assert run.best_epoch >= 1


def test_clips_without_a_label_are_predicted_in_folds_and_trained_on_nowhere(labelled, labelled_cache, tmp_path):
    header, *train = (labelled / "train.csv").read_text().split()
    _, *valid = (labelled / "valid.csv").read_text().split()
    bare = [f"{row.split(',')[0]},," for row in (train[0], valid[0])]
    (tmp_path / "train.csv").write_text("\n".join([header, bare[0], *train[1:]]))
    (tmp_path / "valid.csv").write_text("\n".join([header, bare[1], *valid[1:]]))
    (tmp_path / "test.csv").write_text("\n".join(["Filename", train[0].split(",")[0]]))
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "valid", "test")}
    emi.train_head(labelled_cache, **files, out=tmp_path / "folds", folds=2, head="mean", epochs=1)
    predicted = read_labels(tmp_path / "folds" / "predictions_folds.csv", check_range=False)
    labels = read_labels(tmp_path / "folds" / "labels_folds.csv")
    assert predicted.ids == labels.ids
    assert len(labels) == 39
    whole = pool(gather_inputs(labelled_cache, LabelFiles(files=files)))
    assert (len(whole), len(trainable(whole))) == (39, 38)
