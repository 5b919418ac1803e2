"""An LSTM frame by frame: torch's numbers and gradients, and when it is chosen."""

import pytest
import torch
from torch import nn

from train_head.heads import few_clips, recurrent
from train_head.heads.recurrent import lstm_states


def make(size=7, hidden=5, layers=2, dtype=torch.float32, **others):
    torch.manual_seed(0)
    lstm = nn.LSTM(size, hidden, layers, batch_first=True, dtype=dtype, **others)
    return lstm, torch.randn(3, 11, size, dtype=dtype, requires_grad=True)


def gradients(states, lstm, frames):
    slope = torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).to(states.dtype)
    return torch.autograd.grad(states, [frames, *lstm.parameters()], slope)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_torchs(layers, bias):
    lstm, frames = make(layers=layers, bias=bias)
    found, wanted = few_clips.run(lstm, frames, torch.float32), lstm(frames)[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    for ours, theirs in zip(gradients(found, lstm, frames), gradients(wanted, lstm, frames), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_its_gradient_is_that_of_what_it_computes():
    inputs = torch.randn(4, 2, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(few_clips._Recurrence.apply, (inputs, weight))


def test_in_bfloat16_it_is_near_float32():
    lstm, frames = make(40, 64)
    found, wanted = few_clips.run(lstm, frames, torch.bfloat16), lstm(frames)[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.01 * wanted.norm()
    for ours, theirs in zip(gradients(found, lstm, frames), gradients(wanted, lstm, frames), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


def test_dropout_between_the_layers_follows_the_mode():
    lstm, frames = make(dropout=0.5)
    first, second = (few_clips.run(lstm, frames, torch.float32) for _ in range(2))
    assert not torch.allclose(first, second, atol=1e-3)
    lstm.eval()
    torch.testing.assert_close(few_clips.run(lstm, frames, torch.float32), lstm(frames)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("hidden", "clips", "learns", "chosen"),
    [(640, 8, True, True), (640, 9, True, False), (639, 1, True, False), (640, 1, False, False)],
)
def test_it_is_chosen_for_large_layers_and_few_clips_that_are_learned_from(hidden, clips, learns, chosen, monkeypatch):
    monkeypatch.setattr(recurrent, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(few_clips, "run", lambda *_: torch.full((1,), 1.0))
    monkeypatch.setattr(recurrent, "_widened", lambda *_: torch.full((1,), 0.0))
    lstm = nn.LSTM(4, hidden, batch_first=True)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(learns):
        assert bool(lstm_states(lstm, torch.randn(clips, 3, 4))) == chosen
