"""Dropout with masks of its own: the formula, its gradient, the chance, and what it follows from."""

import math

import pytest
import torch

from extract.backbones import Regularisation, identify, load_trainable
from extract.backbones.speech.cpu_training.dropout import CheapDropout, masked

CHANCE = 0.1
DROPPED = round(CHANCE * 65536)
SCALE = 65536 / (65536 - DROPPED)


def test_kept_values_are_scaled_and_the_probability_is_as_requested():
    dropout, x = CheapDropout(CHANCE).train(), torch.full((1000, 1003), 2.0)
    torch.manual_seed(3)
    out = dropout(x)
    assert sorted(out.unique().tolist()) == [0.0, pytest.approx(2 * SCALE)]
    share, spread = (out == 0).double().mean().item(), math.sqrt(CHANCE * (1 - CHANCE) / x.numel())
    assert abs(share - CHANCE) < 5 * spread
    rows = (out == 0).double().mean(dim=1)
    assert rows.std().item() == pytest.approx(math.sqrt(CHANCE * (1 - CHANCE) / 1003), rel=0.1)  # drawn one by one


def test_the_mask_depends_on_the_seed_alone():
    dropout, x = CheapDropout(CHANCE).train(), torch.ones(64, 65)
    outs = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        outs.append((dropout(x), dropout(x)))
    assert torch.equal(outs[0][0], outs[1][0])
    assert torch.equal(outs[0][1], outs[1][1])
    assert not torch.equal(outs[0][0], outs[0][1])
    assert not torch.equal(outs[0][0], outs[2][0])


@pytest.mark.parametrize(("chance", "training"), [(0.0, True), (CHANCE, False)])
def test_dropout_is_off_in_evaluation_and_at_zero(chance, training):
    x = torch.randn(3, 4)
    assert torch.equal(CheapDropout(chance).train(training)(x), x)


def test_a_dropout_of_one_drops_all_values():
    assert not CheapDropout(1.0).train()(torch.ones(3, 4)).any()


def test_bfloat16_drops_the_same_values():
    x = torch.ones(64, 65, dtype=torch.bfloat16, requires_grad=True)
    dropout = CheapDropout(CHANCE).train()
    torch.manual_seed(5)
    wanted = dropout(x.float())
    torch.manual_seed(5)
    out = dropout(x)
    assert torch.equal(out, wanted.bfloat16())
    out.sum().backward()
    assert torch.equal(x.grad, out)


def test_what_a_mask_drops_of_16_bits_is_zero_and_the_rest_is_untouched():
    x = torch.tensor([1.5, -2.0, -0.0, torch.inf, torch.nan, 3e-40], dtype=torch.bfloat16)
    assert torch.equal(masked(x, torch.zeros(6, dtype=torch.bool)), torch.zeros(6, dtype=torch.bfloat16))
    kept = masked(x, torch.ones(6, dtype=torch.bool))
    assert torch.equal(kept.view(torch.int16), x.view(torch.int16))
    assert masked(x, torch.ones(6, dtype=torch.bool), out=x) is x


@pytest.mark.filterwarnings("error")
def test_an_infinite_number_that_is_dropped_is_no_number():
    """As torch's own; the trainer says so, and NumPy does not."""
    out = CheapDropout(0.5).train()(torch.full((100,), torch.inf))
    assert out.isnan().any()
    assert (out.isnan() | out.isinf()).all()


def test_the_gradient_of_dropout_passes_kept_values():
    x = torch.randn(50, 51, requires_grad=True)
    torch.manual_seed(0)
    out = CheapDropout(CHANCE).train()(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, torch.tensor(SCALE)))


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_the_library_uses_this_dropout(tiny, tmp_path, kind):
    tiny.model(kind, **tiny.layer_norm).save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    backbone = load_trainable(identify(str(tmp_path)), torch.device("cpu"), "fp32", Regularisation())
    dropouts = [module for module in backbone.encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert all(isinstance(module, CheapDropout) for module in dropouts)
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9000, 16000)]
    backbone.train()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(backbone(clips).frames)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
