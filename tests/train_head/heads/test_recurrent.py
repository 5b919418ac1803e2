"""The LSTM in sizes that the processor is fast in: torch's numbers, gradients and dropout."""

import pytest
import torch
from torch import nn

from train_head.heads import recurrent
from train_head.heads.recurrent import lstm_states


@pytest.fixture(params=[(7, 5, 1), (64, 33, 2), (35, 32, 2), (32, 64, 3)], ids=str)
def lstm(request):
    size, hidden, layers = request.param
    torch.manual_seed(0)
    return nn.LSTM(size, hidden, layers, batch_first=True)


def inputs(lstm, batch=3):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 11, lstm.input_size, generator=generator, requires_grad=True)


def gradients(states, lstm, frames):
    slope = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad(states.float(), [frames, *lstm.parameters()], slope)


def test_zeros_beside_the_weights_change_neither_states_nor_gradients(lstm):
    frames = inputs(lstm)
    found, wanted = recurrent._widened(lstm, frames), lstm(frames)[0]
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    for ours, theirs in zip(gradients(found, lstm, frames), gradients(wanted, lstm, frames), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_without_the_function_that_torch_does_not_document_the_layer_itself_runs(lstm, monkeypatch):
    frames = inputs(lstm)
    wide = recurrent._widened(lstm, frames)
    monkeypatch.delattr(torch, "lstm")
    torch.testing.assert_close(recurrent._widened(lstm, frames), wide, atol=1e-6, rtol=0)


def test_it_runs_in_bfloat16_where_the_processor_multiplies_it_and_in_float32_elsewhere(lstm):
    frames = inputs(lstm)
    wanted = lstm(frames)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = lstm_states(lstm, frames)
    if recurrent.bfloat16_unit():
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).norm() < 0.02 * wanted.norm()
        pairs = zip(gradients(found, lstm, frames), gradients(wanted, lstm, frames), strict=True)
        assert all((ours - theirs).norm() < 0.03 * theirs.norm() for ours, theirs in pairs)
    else:
        assert torch.equal(found, wanted)


def test_a_processor_without_bfloat16_is_not_asked_for_it(lstm, monkeypatch):
    monkeypatch.setattr(recurrent, "bfloat16_unit", lambda: None)
    frames = inputs(lstm)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lstm_states(lstm, frames.bfloat16().float()), lstm_states(lstm, frames.bfloat16()))
        assert lstm_states(lstm, frames).dtype == torch.float32


def test_nothing_is_widened_in_float32(lstm, monkeypatch):
    monkeypatch.setattr(recurrent, "_widened", None)
    frames = inputs(lstm)
    assert torch.equal(lstm_states(lstm, frames), lstm(frames)[0])


def test_dropout_between_the_layers_follows_the_mode():
    lstm = nn.LSTM(5, 5, 2, batch_first=True, dropout=0.5)
    frames = inputs(lstm)
    torch.manual_seed(0)
    dropped = recurrent._widened(lstm, frames)
    assert not torch.allclose(dropped, recurrent._widened(lstm.eval(), frames), atol=1e-3)
    torch.testing.assert_close(recurrent._widened(lstm, frames), lstm(frames)[0], atol=1e-6, rtol=0)
