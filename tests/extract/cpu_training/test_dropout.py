"""Dropout with masks of its own: the formula, its gradient, the chance, and what it follows from."""

import math

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from extract.backbones import Regularisation, identify, load_trainable
from extract.backbones.cpu_training.dropout import ATTENTION, CheapDropout, attention

CHANCE = 0.1
DROPPED = round(CHANCE * 65536)
SCALE = 65536 / (65536 - DROPPED)


class Training(torch.nn.Module):
    """What transformers hands to an attention function."""

    is_causal = False


def attend(query, key, value, mask=None, dropout=CHANCE, seed=0, scaling=None):
    torch.manual_seed(seed)
    return attention(Training(), query, key, value, mask, scaling=scaling, dropout=dropout)[0]


def heads(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, *shape, generator=generator, dtype=dtype, requires_grad=True) for _ in range(3)]


def masks(frames):
    valid = torch.arange(frames) < torch.tensor([[frames], [frames - 2]])
    boolean = valid[:, None, None, :].expand(2, 1, frames, frames)
    return {"none": None, "boolean": boolean, "added": torch.zeros(boolean.shape).masked_fill(~boolean, -torch.inf)}


def test_what_stays_is_scaled_and_the_chance_is_the_one_asked_for():
    dropout, x = CheapDropout(CHANCE).train(), torch.full((1000, 1003), 2.0)
    torch.manual_seed(3)
    out = dropout(x)
    assert sorted(out.unique().tolist()) == [0.0, pytest.approx(2 * SCALE)]
    share, spread = (out == 0).double().mean().item(), math.sqrt(CHANCE * (1 - CHANCE) / x.numel())
    assert abs(share - CHANCE) < 5 * spread
    rows = (out == 0).double().mean(dim=1)
    assert rows.std().item() == pytest.approx(math.sqrt(CHANCE * (1 - CHANCE) / 1003), rel=0.1)  # drawn one by one


def test_the_mask_follows_from_the_seed_alone():
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
def test_nothing_is_dropped_where_nothing_is_to_be(chance, training):
    x = torch.randn(3, 4)
    assert torch.equal(CheapDropout(chance).train(training)(x), x)


def test_a_chance_of_one_drops_all():
    assert not CheapDropout(1.0).train()(torch.ones(3, 4)).any()


def test_the_gradient_of_dropout_passes_what_stayed():
    x = torch.randn(50, 51, requires_grad=True)
    torch.manual_seed(0)
    out = CheapDropout(CHANCE).train()(x)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, torch.tensor(SCALE)))


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_is_torchs_but_for_what_is_dropped(mask, scaling):
    query, key, value = heads(7, 4)
    given = masks(7)[mask]
    found = attend(query, key, value, given, dropout=1e-9, scaling=scaling)  # rounds to no chance at all
    wanted = functional.scaled_dot_product_attention(query, key, value, given, scale=scaling).transpose(1, 2)
    assert (found - wanted).abs().max() < 1e-6
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(found, (query, key, value), slope)
    theirs = torch.autograd.grad(wanted, (query, key, value), slope)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) < 1e-6


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
def test_the_gradient_of_attention_is_that_of_what_it_computes(mask):
    given = masks(5)[mask]
    given = given.double() if mask == "added" else given
    assert torch.autograd.gradcheck(
        lambda *inputs: attend(*inputs, given, dropout=0.4), heads(5, 4, dtype=torch.float64)
    )


def test_attention_is_right_on_average():
    query, key, value = (x.detach() for x in heads(6, 4))
    mean = torch.stack([attend(query, key, value, seed=seed, dropout=0.3) for seed in range(4000)]).mean(0)
    wanted = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    assert (mean - wanted).abs().max() < 0.06


def test_checkpointing_draws_the_same_again():
    query, key, value = heads(9, 4)
    kept = attend(query, key, value)
    torch.manual_seed(0)
    again = checkpoint(
        lambda *inputs: attention(Training(), *inputs, None, dropout=CHANCE)[0], query, key, value, use_reentrant=False
    )
    assert torch.equal(kept, again)
    ours = torch.autograd.grad(again.square().sum(), (query, key, value))
    theirs = torch.autograd.grad(kept.square().sum(), (query, key, value))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_torchs(dtype):
    query, key, value = (x.detach().to(dtype) for x in heads(9, 4))
    torch.manual_seed(0)
    wanted = functional.scaled_dot_product_attention(query, key, value, dropout_p=CHANCE).transpose(1, 2)
    assert torch.equal(attend(query, key, value), wanted)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_the_library_drops_out_this_way(tiny, tmp_path, kind):
    tiny.model(kind, **tiny.layer_norm).save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    backbone = load_trainable(identify(str(tmp_path)), torch.device("cpu"), "fp32", Regularisation())
    dropouts = [module for module in backbone.encoder.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert all(isinstance(module, CheapDropout) for module in dropouts)
    assert (backbone.encoder.config._attn_implementation == ATTENTION) == (kind != "wavlm")
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (9000, 16000)]
    backbone.train()
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(backbone(clips).frames)
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
