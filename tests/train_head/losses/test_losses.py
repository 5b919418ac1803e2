"""Every loss against its formula in NumPy, and the promises that all of them make."""

import numpy as np
import pytest
import torch
import torchmetrics.functional
from scipy.special import expit, logsumexp

from train_head.losses import LOSSES

CLIPS, TARGETS = 12, 3
EVERY_LOSS = pytest.mark.parametrize("name", sorted(LOSSES))


def focal(p, t, w):
    e = np.abs(p - t)
    return np.average((2 * expit(20 * e) - 1) * e, weights=w)


def smooth(p, t, w, delta=1.0):
    e = np.abs(p - t)
    return np.average(np.where(e < delta, e**2 / (2 * delta), e - delta / 2), weights=w)


def correlations(p, t, w):
    covariances = [np.cov(p[:, k], t[:, k], aweights=w[:, k], ddof=0) for k in range(t.shape[1])]
    return 1 - np.mean([c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in covariances])


def concordances(p, t, w):
    found = []
    for k in range(t.shape[1]):
        c = np.cov(p[:, k], t[:, k], aweights=w[:, k], ddof=0)
        apart = np.average(p[:, k], weights=w[:, k]) - np.average(t[:, k], weights=w[:, k])
        found.append(2 * c[0, 1] / (c[0, 0] + c[1, 1] + apart**2))
    return 1 - np.mean(found)


def balanced(p, t, w, noise=0.2):
    losses = np.zeros_like(t)
    for k in range(t.shape[1]):
        likelihood = -((p[:, k, None] - t[None, :, k]) ** 2) / (2 * noise**2)
        losses[:, k] = logsumexp(likelihood, axis=1) - np.diag(likelihood)
    return 2 * noise**2 * np.average(losses, weights=w)


def hurdle(p, t, w, amount=10.0):
    chance, size, above = expit(p[:, : t.shape[1]]), p[:, t.shape[1] :], t > 0
    occurs = -np.where(above, np.log(chance), np.log(1 - chance))
    return np.average(occurs, weights=w) + amount * np.average((size - t)[above] ** 2, weights=w[above])


FORMULAS = {
    "mse": lambda p, t, w: np.average((p - t) ** 2, weights=w),
    "mae": lambda p, t, w: np.average(np.abs(p - t), weights=w),
    "huber": smooth,
    "pearson": correlations,
    "ccc": concordances,
    "balanced_mse": balanced,
    "focal_r": focal,
    "zero_inflated": hurdle,
}


def batch(name: str, clips: int = CLIPS, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Predictions, labels of which a third are 0, and weights."""
    rng = np.random.default_rng(seed)
    target = np.maximum(rng.uniform(-0.5, 1, (clips, TARGETS)), 0)
    predicted = rng.normal(0.3, 0.4, (clips, TARGETS * LOSSES[name].outputs))
    return [torch.tensor(x, dtype=dtype) for x in (predicted, target, rng.uniform(0.2, 3, (clips, TARGETS)))]


def value_and_slope(name: str, predicted: torch.Tensor, target: torch.Tensor) -> tuple[float, torch.Tensor]:
    predicted = predicted.clone().requires_grad_()
    loss = LOSSES[name](predicted, target)
    loss.backward()
    return loss.item(), predicted.grad


def test_every_loss_has_a_formula_here():
    assert FORMULAS.keys() == LOSSES.keys()


@EVERY_LOSS
def test_a_loss_equals_its_formula_with_and_without_weights(name):
    p, t, w = batch(name)
    arrays = p.numpy(), t.numpy()
    assert LOSSES[name](p, t).item() == pytest.approx(FORMULAS[name](*arrays, np.ones(t.shape)), rel=1e-9)
    assert LOSSES[name](p, t, w).item() == pytest.approx(FORMULAS[name](*arrays, w.numpy()), rel=1e-9)


@EVERY_LOSS
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_is_that_of_the_loss(name, weighted):
    p, t, w = batch(name, clips=5)
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, t, w if weighted else None), p.requires_grad_())


@EVERY_LOSS
def test_the_order_of_clips_does_not_matter(name):
    p, t, w = batch(name)
    order = torch.randperm(CLIPS, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(LOSSES[name](p[order], t[order], w[order]), LOSSES[name](p, t, w))


@EVERY_LOSS
def test_equal_weights_are_no_weights_and_only_their_ratios_count(name):
    p, t, w = batch(name)
    torch.testing.assert_close(LOSSES[name](p, t, torch.ones_like(t)), LOSSES[name](p, t))
    torch.testing.assert_close(LOSSES[name](p, t, 7 * w), LOSSES[name](p, t, w))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"balanced_mse"}))  # there, copies are further rivals
def test_a_clip_of_weight_two_is_a_clip_given_twice(name):
    p, t, _ = batch(name)
    weight = torch.ones_like(t)
    weight[3] = 2
    twice = [torch.cat([x, x[3:4]]) for x in (p, t)]
    torch.testing.assert_close(LOSSES[name](p, t, weight), LOSSES[name](*twice))


@EVERY_LOSS
@pytest.mark.parametrize("kind", ["one clip", "flat predictions", "flat labels", "both flat", "equal", "all zero"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_batches_give_finite_losses_and_gradients(name, kind, dtype):
    p, t, _ = batch(name, clips=1 if kind == "one clip" else CLIPS, dtype=dtype)
    if kind in ("flat predictions", "both flat"):
        p = torch.full_like(p, 0.3)
    if kind in ("flat labels", "both flat"):
        t = torch.full_like(t, 0.7)
    if kind == "equal":
        p = t.repeat(1, LOSSES[name].outputs)
    if kind == "all zero":
        p, t = torch.zeros_like(p), torch.zeros_like(t)
    value, slope = value_and_slope(name, p, t)
    assert np.isfinite(value)
    assert value > -1e-6
    assert torch.isfinite(slope).all()


@EVERY_LOSS
def test_weights_that_are_all_zero_give_no_gradient(name):
    p, t, w = batch(name)
    p.requires_grad_()
    loss = LOSSES[name](p, t, 0 * w)
    loss.backward()
    assert loss.item() == 0
    assert not p.grad.any()


@EVERY_LOSS
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    p, t, w = batch(name, dtype=torch.float32)
    p = p.to(dtype)
    loss = LOSSES[name](p, t, w.to(dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](p.float(), t, w.to(dtype).float()), rtol=0, atol=0)


@EVERY_LOSS
def test_shapes_that_would_broadcast_are_refused(name):
    p, t, w = batch(name)
    for wrong in [(p[:1], t), (p[:, :1], t), (p, t[:, 0]), (p, t, w[:, :1])]:
        with pytest.raises(ValueError, match="shape"):
            LOSSES[name](*wrong)


def test_pearson_equals_torchmetrics():
    p, t, _ = batch("pearson")
    expected = torchmetrics.functional.pearson_corrcoef(p, t)
    assert LOSSES["pearson"](p, t).item() == pytest.approx(1 - expected.mean().item(), abs=1e-9)


def test_concordance_equals_torchmetrics():
    p, t, _ = batch("ccc")
    p = p - p.mean(0) + t.mean(0)  # torchmetrics uses sample moments, which agree where the means do
    expected = torchmetrics.functional.concordance_corrcoef(p, t)
    assert LOSSES["ccc"](p, t).item() == pytest.approx(1 - expected.mean().item(), abs=1e-9)


@pytest.mark.parametrize("delta", [0.2, 1.0])
def test_huber_equals_torch(delta):
    p, t, _ = batch("huber")
    expected = torch.nn.HuberLoss(delta=delta)(p, t) / delta
    torch.testing.assert_close(LOSSES["huber"](p, t, delta=delta), expected)


def test_focal_r_of_power_two_is_focal_mse():
    p, t, _ = batch("focal_r")
    e = np.abs(p.numpy() - t.numpy())
    expected = np.mean((2 * expit(5 * e) - 1) ** 2 * e**2)
    found = LOSSES["focal_r"](p, t, beta=5.0, gamma=2.0, power=2.0).item()
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["pearson", "ccc"])
def test_a_target_with_constant_labels_is_left_out_of_the_mean(name):
    p, t, _ = batch(name, dtype=torch.float32)
    t[:, 1] = 0.1
    others = LOSSES[name](p[:, [0, 2]], t[:, [0, 2]])
    value, slope = value_and_slope(name, p, t)
    assert value == pytest.approx(others.item())
    assert not slope[:, 1].any()


@pytest.mark.parametrize("name", ["pearson", "ccc"])
def test_constant_predictions_are_uncorrelated_and_led_towards_the_labels(name):
    p, t, _ = batch(name, dtype=torch.float32)
    value, slope = value_and_slope(name, torch.full_like(p, 0.3), t)
    assert value == pytest.approx(1.0)
    moved = torch.full_like(p, 0.3) - 0.1 * slope / slope.abs().max()
    assert LOSSES[name](moved, t).item() < 0.5 if name == "pearson" else LOSSES[name](moved, t).item() < 1


def test_balanced_mse_draws_predictions_less_to_the_common_label():
    target = torch.tensor([[0.0]] * 30 + [[1.0]] * 2)
    plain, balanced = (
        min(np.linspace(0, 1, 101), key=lambda c: LOSSES[name](torch.full_like(target, float(c)), target).item())
        for name in ("mse", "balanced_mse")
    )
    assert plain == pytest.approx(2 / 32, abs=0.01)
    assert balanced > plain


def test_the_options_of_a_loss_are_those_of_its_function():
    assert LOSSES["huber"].options == {"delta": 1.0}
    assert LOSSES["mse"].options == {}


@EVERY_LOSS
def test_labels_that_are_not_there_have_no_gradient_and_change_none(name):
    p, t, _ = batch(name, clips=6)
    known = torch.tensor([True, False, True, True, False, True])
    masked = t.masked_fill(~known[:, None], torch.nan)
    p.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, masked), p)
    (found,) = torch.autograd.grad(LOSSES[name](p, masked), p)
    (expected,) = torch.autograd.grad(LOSSES[name](p[known], t[known]), p)
    torch.testing.assert_close(found, expected)
    assert not found[~known].any()
