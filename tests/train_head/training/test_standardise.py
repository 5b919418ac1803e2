"""Standardisation against NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.preprocessing import StandardScaler

from train_head.errors import TrainSettingsError
from train_head.training.predictor import BLOCK_ROWS, Standardise


def make_frames(rows: int, dim: int = 6, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    return (torch.randn(rows, dim, generator=generator) * torch.logspace(-3, 3, dim) + torch.arange(dim)).to(dtype)


def fitted(chunks) -> Standardise:
    module = Standardise(chunks[0].shape[1])
    module.fit(iter(chunks))
    return module


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 3 * BLOCK_ROWS), max_size=8),
    rows=st.integers(1, 3 * BLOCK_ROWS),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_chunks_of_any_size_give_the_mean_and_scale_of_scikit_learn(cuts, rows, dtype):
    frames = make_frames(rows, dtype=dtype)
    chunks = list(torch.tensor_split(frames, sorted(min(cut, rows) for cut in cuts)))
    expected = StandardScaler().fit(frames.double().numpy())
    found = fitted(chunks)
    np.testing.assert_allclose(found.mean.numpy(), expected.mean_, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.scale.numpy(), expected.scale_, rtol=1e-6)


def test_the_training_frames_come_out_with_mean_0_and_spread_1():
    frames = make_frames(3000)
    out = fitted([frames])(frames.float().view(3, 1000, 6)).view(3000, 6).numpy()
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0), 1, atol=1e-4)


def test_a_mean_that_dwarfs_the_spread_loses_nothing():
    frames = 1e4 + torch.arange(10_000, dtype=torch.float32)[:, None].remainder(2) / 64
    assert fitted(frames.split(7)).scale.item() == pytest.approx(1 / 128, rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_feature_keeps_its_scale(value):
    frames = torch.stack([torch.full((2000,), value), torch.arange(2000.0)], dim=1)
    module = fitted(frames.split(300))
    assert module.scale[0] == 1
    assert module(frames[None])[0, :, 0].abs().max() <= 1e-6 * value


def test_a_single_frame_has_scale_1():
    assert torch.equal(fitted([make_frames(1)]).scale, torch.ones(6))


def test_it_changes_nothing_until_it_is_fitted():
    frames = torch.randn(2, 5, 6)
    assert torch.equal(Standardise(6)(frames), frames)


def test_the_batch_keeps_its_values_and_its_layout_in_memory():
    frames = torch.randn(5, 2, 6).transpose(0, 1)
    before = frames.clone()
    out = fitted([make_frames(50)])(frames)
    assert torch.equal(frames, before)
    assert out.stride() == frames.stride()


def test_gradients_pass_through():
    frames = torch.randn(2, 5, 6, requires_grad=True)
    module = fitted([make_frames(50)])
    module(frames).sum().backward()
    torch.testing.assert_close(frames.grad, (1 / module.scale).expand(2, 5, 6))


def test_what_was_measured_is_saved_with_the_weights():
    module, other = fitted([make_frames(50)]), Standardise(6)
    other.load_state_dict(load(save(module.state_dict())))
    frames = torch.randn(2, 5, 6)
    assert torch.equal(module(frames), other(frames))
    assert not list(module.parameters())


def test_chunks_are_read_once_and_left_as_they_were():
    frames = make_frames(2 * BLOCK_ROWS + 3, dtype=torch.float32)
    before = frames.clone()
    module = fitted([frames])
    assert torch.equal(frames, before)
    module.fit(iter([frames]))
    assert torch.equal(module.mean, fitted([frames]).mean)


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no frames"),
        ([torch.zeros(0, 6)], "no frames"),
        ([torch.zeros(3, 5)], r"\(rows, 6\) to standardise by, got \(3, 5\)"),
        ([torch.zeros(6)], r"got \(6,\)"),
        ([torch.tensor([[0, 0, torch.nan, 0, 0, torch.inf]])], r"2 of 6 features hold NaN .*first: feature 2"),
    ],
)
def test_frames_that_cannot_be_measured_are_refused_and_nothing_is_changed(chunks, message):
    module = Standardise(6)
    with pytest.raises(TrainSettingsError, match=message):
        module.fit(chunks)
    assert torch.equal(module.mean, torch.zeros(6))
