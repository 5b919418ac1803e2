"""Loss expressions, what they decode to, and weights for rare labels against NumPy and SciPy."""

import contextlib

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from train_head.errors import TrainSettingsError
from train_head.losses import (
    LOSSES,
    WEIGHTINGS,
    build_objective,
    canonical,
    canonical_weighting,
    decode,
    outputs_per_target,
    parse,
)
from train_head.losses.objective import build_weights

above_zero = st.floats(1e-6, 1e6)


@st.composite
def expressions(draw):
    terms = []
    for name in draw(st.lists(st.sampled_from(sorted(LOSSES)), min_size=1, max_size=3)):
        options = draw(st.dictionaries(st.sampled_from([*LOSSES[name].options, None]), above_zero))
        inside = ", ".join(f"{key}={value}" for key, value in options.items() if key)
        coefficient = draw(st.none() | above_zero)
        terms.append((f"{coefficient} * " if coefficient else "") + name + (f"({inside})" if inside else ""))
    return "+".join(terms)


def skewed(clips: int = 400, seed: int = 0) -> torch.Tensor:
    """(clips, 2) labels in hundredths: one target mostly 0, the other fairly even."""
    rng = np.random.default_rng(seed)
    columns = [np.maximum(rng.normal(-0.1, 0.3, clips), 0), rng.beta(2, 3, clips)]
    return torch.tensor(np.stack(columns, 1).round(2).clip(0, 1), dtype=torch.float32)


@given(expressions())
def test_the_canonical_spelling_reads_as_the_same_terms(expression):
    assert parse(canonical(expression)) == parse(expression)
    assert canonical(canonical(expression)) == canonical(expression)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mse", "mse"),
        ("  0.70*ccc+ .3 *mse", "0.7*ccc + 0.3*mse"),
        ("mse*2", "2*mse"),
        ("huber", "huber(delta=1)"),
        ("ccc + 0.1*huber(delta=0.2)", "ccc + 0.1*huber(delta=0.2)"),
        ("mse + (mae + ccc)", "mse + mae + ccc"),
    ],
)
def test_an_expression_has_one_spelling(expression, expected):
    assert canonical(expression) == expected


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mes", "unknown loss 'mes'; did you mean 'mse'"),
        ("huber(dleta=1)", "unknown option of loss huber 'dleta'; did you mean 'delta'"),
        ("mse(delta=1)", "unknown option of loss mse 'delta'"),
        ("-0.5*mse", "coefficient of mse must be above 0, got -0.5"),
        ("0*mse", "coefficient of mse must be above 0, got 0"),
        ("1e999*mse", "must be above 0, got inf"),
        ("huber(delta=0)", "option delta of huber must be above 0, got 0"),
        ("huber(delta=True)", "cannot be read: 'True'"),
        ("huber(0.2)", "cannot be read"),
        ("huber(delta=1, delta=2)", "cannot be read"),
        ("huber(**x)", "cannot be read"),
        ("mse - mae", "cannot be read"),
        ("mse + 0.5", "cannot be read: '0.5'"),
        ("mse*mae", "cannot be read"),
        ("2j*mse", "cannot be read"),
        ("0.5*", "cannot be read"),
        ("", "cannot be read"),
        ("mse\0", "cannot be read"),
        ("__import__('os').system('true')", "cannot be read"),
        ("mse" + "+mse" * 100, "403 characters"),
    ],
)
def test_what_is_no_expression_is_refused_by_name(expression, message):
    with pytest.raises(TrainSettingsError, match=message.replace("(", r"\(").replace("*", r"\*")):
        canonical(expression)


@given(st.text("mse*+-.()=0123 jn'_[]", max_size=30))
def test_any_text_is_read_or_refused_as_a_setting(text):
    with contextlib.suppress(TrainSettingsError):
        assert parse(canonical(text)) == parse(text)


def test_an_objective_is_the_sum_of_its_terms():
    targets = skewed(8)
    predicted = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
    objective = build_objective("0.7*ccc + huber(delta=0.1)", "none", targets)
    expected = 0.7 * LOSSES["ccc"](predicted, targets) + LOSSES["huber"](predicted, targets, delta=0.1)
    torch.testing.assert_close(objective(predicted, targets), expected)
    assert str(objective) == "0.7*ccc + huber(delta=0.1)"
    assert objective.outputs == 1
    assert decode(predicted, predicted.shape[1]) is predicted


def test_beside_a_two_part_loss_the_others_see_the_decoded_prediction():
    targets = skewed(8)
    outputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    objective = build_objective("zero_inflated + 0.5*mse", "none", targets)
    expected_prediction = 1 / (1 + torch.exp(-outputs[:, :2])) * outputs[:, 2:]
    expected = LOSSES["zero_inflated"](outputs, targets) + 0.5 * LOSSES["mse"](expected_prediction, targets)
    torch.testing.assert_close(objective(outputs, targets), expected)
    torch.testing.assert_close(decode(outputs, 2), expected_prediction)
    assert objective.outputs == outputs_per_target("zero_inflated + 0.5*mse") == 2


def test_decoding_refuses_a_width_that_is_neither():
    with pytest.raises(ValueError, match="5 columns are neither one nor two for each of 2 targets"):
        decode(torch.zeros(3, 5), 2)
    assert outputs_per_target("mse") == 1


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_half_precision_outputs_give_a_float32_objective(name):
    targets = skewed(8)
    outputs = torch.zeros(8, 2 * LOSSES[name].outputs, dtype=torch.bfloat16)
    assert build_objective(name, "lds", targets)(outputs, targets).dtype == torch.float32


def test_an_objective_leaves_nothing_in_a_checkpoint():
    objective = build_objective("mse", "dense", skewed())
    assert not list(objective.parameters())
    assert not objective.state_dict()
    assert objective.to("meta").weights.table.device.type == "meta"


def test_a_weighting_counts_in_the_objective():
    targets = skewed()
    predicted = torch.zeros_like(targets)
    weights = build_weights("lds", targets)(targets)
    expected = LOSSES["mse"](predicted, targets, weights)
    torch.testing.assert_close(build_objective("mse", "lds", targets)(predicted, targets), expected)
    assert expected > LOSSES["mse"](predicted, targets)


@pytest.mark.parametrize("name", sorted(WEIGHTINGS.keys() - {"none"}))
def test_weights_have_mean_one_and_favour_rare_labels(name):
    targets = skewed()
    weights = build_weights(name, targets)(targets)
    torch.testing.assert_close(weights.mean(0), torch.ones(2), atol=1e-4, rtol=0)
    assert (weights > 0).all()
    assert weights[targets[:, 0] == 0, 0].max() < 0.2 * weights[:, 0].max()


@pytest.mark.parametrize("name", sorted(WEIGHTINGS.keys() - {"none"}))
def test_labels_between_and_beyond_those_of_training_weigh_no_more_than_the_rarest(name):
    weighting = build_weights(name, torch.tensor([[0.0]] * 20 + [[0.5]] * 3 + [[1.0]] * 5))
    rarest = weighting(torch.tensor([[0.5]]))
    others = weighting(torch.linspace(-1, 2, 50)[:, None])
    assert torch.isfinite(others).all()
    assert (others <= rarest * (1 + 1e-6)).all()
    assert weighting(torch.tensor([[5.0]])) == weighting(torch.tensor([[1.0]]))


@pytest.mark.parametrize("name", sorted(WEIGHTINGS.keys() - {"none"}))
@pytest.mark.parametrize("clips", [1, 9])
def test_a_constant_target_is_not_weighted(name, clips):
    targets = torch.full((clips, 1), 0.3)
    torch.testing.assert_close(build_weights(name, targets)(targets), torch.ones(clips, 1))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_lds_equals_one_over_the_smoothed_histogram(power):
    targets = skewed()
    labels = targets[:, 1].double().numpy()
    hundredths = np.round((labels - labels.min()) / (labels.max() - labels.min()) * 100).astype(int)
    counts = np.array([(hundredths == i).sum() for i in range(101)]) ** power
    kernel = scipy.stats.norm.pdf(np.arange(-8, 9), scale=2.0)
    weights = 1 / np.convolve(counts, kernel, mode="same")[hundredths]
    found = build_weights(f"lds(power={power})", targets)(targets)[:, 1]
    np.testing.assert_allclose(found.numpy(), weights / weights.mean(), rtol=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_dense_weights_equal_those_of_a_kernel_density_estimate(alpha):
    targets = torch.tensor(np.random.default_rng(0).beta(2, 5, (500, 1)), dtype=torch.float32)
    labels = targets[:, 0].double().numpy()
    density = scipy.stats.gaussian_kde(labels, bw_method="silverman")(labels)
    weights = np.maximum(1 - alpha * (density - density.min()) / np.ptp(density), 1e-6)
    found = build_weights(f"dense(alpha={alpha})", targets)(targets)[:, 0]
    np.testing.assert_allclose(found.numpy(), weights / weights.mean(), atol=0.02)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("none", "none"), ("lds", "lds(sigma=2, power=0.5)"), ("dense(alpha=0.5)", "dense(alpha=0.5)")],
)
def test_a_weighting_has_one_spelling(text, expected):
    assert canonical_weighting(text) == canonical_weighting(expected) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dens", "unknown weighting 'dens'; did you mean 'dense'"),
        ("dense(alpa=1)", "did you mean 'alpha'"),
        ("lds + dense", "cannot be a sum"),
        ("0.5*lds", "cannot be a sum"),
        ("dense(alpha=-1)", "must be above 0"),
    ],
)
def test_what_is_no_weighting_is_refused_by_name(text, message):
    with pytest.raises(TrainSettingsError, match=message):
        canonical_weighting(text)


def test_a_ramp_grows_a_coefficient_over_the_first_epochs():
    torch.manual_seed(0)
    outputs, targets = torch.rand(8, 2), torch.rand(8, 2)
    objective = build_objective("mse + 0.4*pearson(ramp=4)", "none", targets)
    mse, pearson = (build_objective(name, "none", targets)(outputs, targets) for name in ("mse", "pearson"))
    for epoch, share in ((1, 0.25), (2, 0.5), (4, 1.0), (9, 1.0)):
        objective.epoch = epoch
        torch.testing.assert_close(objective(outputs, targets), mse + share * 0.4 * pearson)
    assert canonical("mse + 0.4*pearson(ramp=4)") == "mse + 0.4*pearson(ramp=4)"
    assert canonical("huber(ramp=2)") == "huber(delta=1, ramp=2)"
    assert "ramp" not in canonical("mse + huber")


@pytest.mark.parametrize("text", ["mse(ramp=0)", "mse(ramp=1.5)", "mse(ramp=-1)"])
def test_a_ramp_is_a_whole_number_of_epochs(text):
    with pytest.raises(TrainSettingsError, match="ramp"):
        canonical(text)


def test_a_weighting_has_no_ramp():
    with pytest.raises(TrainSettingsError, match="ramp"):
        canonical_weighting("lds(ramp=3)")
