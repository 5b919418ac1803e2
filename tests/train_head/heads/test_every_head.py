"""What every head promises: a name in HEADS is all that it takes to be held to it."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from train_head.errors import TrainSettingsError
from train_head.heads import HEADS, build_head

DIM, TARGETS = 12, 3
SMALL = {"hidden": 16, "heads": 2}
FILLERS = [0.0, -1e30, 1e30, float("nan"), float("inf")]
LENGTHS = [45, 1, 31, 7]
"""More frames than any head pools into one, so that recurrent and attention weights are used."""


def has(name: str, option: str) -> bool:
    return option in {field.name for field in fields(HEADS[name].Options)}


def small_head(name: str, dim: int = DIM, seed: int = 0, **options):
    torch.manual_seed(seed)
    known = {key: value for key, value in (SMALL | options).items() if has(name, key)}
    return build_head(name, known, dim, TARGETS)


def make_clips(lengths: list[int], dim: int = DIM) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, dim, generator=generator) for length in lengths]


def pad(clips: list[torch.Tensor], filler: float = 0.0, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """As training batches are: (batch, frames, dim), time-major in memory."""
    lengths = torch.tensor([len(clip) for clip in clips])
    steps = torch.full((int(lengths.max()) + extra, len(clips), clips[0].shape[1]), filler)
    for column, clip in enumerate(clips):
        steps[: len(clip), column] = clip
    return steps.transpose(0, 1), lengths


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    filler=st.sampled_from(FILLERS),
    extra=st.sampled_from([0, 1, 9]),
)
def test_padding_and_neighbours_never_change_a_clip(name, lengths, filler, extra):
    clips = make_clips(lengths)
    head = small_head(name).eval()
    with torch.inference_mode():
        together = head(*pad(clips, filler, extra))
        alone = torch.cat([head(*pad([clip])) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("name", HEADS)
def test_gradients_are_those_of_the_clips_alone_whatever_the_padding_holds(name, filler):
    clips = make_clips(LENGTHS)
    head = small_head(name).eval()
    padded, lengths = pad(clips, filler, extra=3)
    padded.requires_grad_()
    head(padded, lengths).square().sum().backward()
    found = {key: parameter.grad for key, parameter in head.named_parameters()}
    head.zero_grad()
    for clip in clips:
        head(*pad([clip])).square().sum().backward()
    for key, parameter in head.named_parameters():
        torch.testing.assert_close(
            found[key], parameter.grad, atol=1e-4, rtol=1e-4, msg=lambda text, k=key: f"{k}: {text}"
        )
    outside = torch.arange(padded.shape[1]) >= lengths[:, None]
    assert (padded.grad[outside] == 0).all()
    assert padded.grad[~outside].isfinite().all()
    assert (padded.grad[~outside] != 0).any(dim=1).all()


@pytest.mark.parametrize("name", HEADS)
def test_gradients_reach_every_parameter_in_training(name):
    head = small_head(name).train()
    head(*pad(make_clips(LENGTHS))).square().sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", HEADS)
def test_the_layout_of_the_batch_in_memory_changes_nothing(name):
    frames, lengths = pad(make_clips(LENGTHS))
    head = small_head(name).eval()
    assert not frames.is_contiguous()
    torch.testing.assert_close(head(frames, lengths), head(frames.contiguous(), lengths), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_the_batch_is_left_as_it_was(name):
    frames, lengths = pad(make_clips(LENGTHS), filler=5.0)
    before, lengths_before = frames.clone(), lengths.clone()
    small_head(name).train()(frames, lengths)
    assert torch.equal(frames, before)
    assert torch.equal(lengths, lengths_before)


@pytest.mark.parametrize("name", HEADS)
def test_clips_of_one_equal_frame_have_finite_gradients(name):
    head = small_head(name).eval()
    frames = torch.zeros(2, 1, DIM, requires_grad=True)
    out = head(frames, torch.tensor([1, 1]))
    out.sum().backward()
    assert out.shape == (2, TARGETS)
    assert torch.equal(out[0], out[1])
    assert frames.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("targets", [1, 7])
@pytest.mark.parametrize("dim", [5, 384, 1027])
@pytest.mark.parametrize("name", HEADS)
def test_any_size_of_features_and_labels_works_with_the_default_options(name, dim, targets):
    head = build_head(name, {}, dim, targets).eval()
    with torch.inference_mode():
        out = head(*pad(make_clips([3], dim)))
    assert out.shape == (1, targets)
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@pytest.mark.parametrize("name", HEADS)
def test_a_hidden_size_of_0_takes_the_inputs(name):
    if has(name, "hidden"):
        assert small_head(name, dim=13, hidden=0)(*pad(make_clips([3, 2], 13))).shape == (2, TARGETS)


@pytest.mark.parametrize("name", HEADS)
def test_weights_survive_a_safetensors_file(name):
    head, other = small_head(name).eval(), small_head(name, seed=1).eval()
    other.load_state_dict(load(save({key: value.contiguous() for key, value in head.state_dict().items()})))
    batch = pad(make_clips([9, 4]))
    with torch.inference_mode():
        assert torch.equal(head(*batch), other(*batch))


@pytest.mark.parametrize("name", HEADS)
def test_dropout_acts_in_training_only(name):
    head = small_head(name, dropout=0.5)
    batch = pad(make_clips([9, 4]))
    head.eval()
    assert torch.equal(head(*batch), head(*batch))
    head.train()
    assert not torch.equal(head(*batch), head(*batch))


@pytest.mark.parametrize("name", HEADS)
def test_bfloat16_matrix_products_stay_near_float32_and_train(name):
    head = small_head(name).eval()
    batch = pad(make_clips(LENGTHS))
    with torch.autocast("cpu", torch.bfloat16):
        low = head(*batch).float()
    low.square().sum().backward()
    torch.testing.assert_close(low, head(*batch), atol=0.05, rtol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize(("output", "low", "high"), [("tanh", -1, 1), ("sigmoid", 0, 1)])
@pytest.mark.parametrize("name", HEADS)
def test_an_output_activation_bounds_the_predictions(name, output, low, high):
    values = small_head(name, output=output).eval()(*pad([100 * clip for clip in make_clips([3, 9])]))
    assert ((values >= low) & (values <= high)).all()


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_option_is_refused_and_the_nearest_named(name):
    with pytest.raises(TrainSettingsError, match=rf"unknown option of head '{name}' 'outputt'; did you mean 'output'"):
        build_head(name, {"outputt": "tanh"}, DIM, TARGETS)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("hidden", -1),
        ("layers", 0),
        ("heads", 0),
        ("pool_frames", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("output", "relu"),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_an_option_out_of_range_is_refused_by_name(name, option, value):
    if has(name, option):
        with pytest.raises(TrainSettingsError, match=option):
            build_head(name, {option: value}, DIM, TARGETS)
