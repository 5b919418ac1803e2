"""Attention in blocks of heads: torch's numbers and gradients, but for what is dropped."""

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from extract.backbones import Regularisation, identify, load_trainable
from extract.backbones.speech.cpu_training import attention as module
from extract.backbones.speech.cpu_training import products
from extract.backbones.speech.cpu_training.attention import ATTENTION, attention

CHANCE = 0.1


@pytest.fixture(params=[1, 2 * 7 * 7, 1 << 20], ids=["head by head", "two heads", "all heads"])
def blocks(request, monkeypatch):
    """Of clips of 7 frames with three heads."""
    monkeypatch.setattr(module, "BLOCK_SCORES", request.param)


@pytest.fixture(params=[True, False], ids=["numpy's products", "torch's products"])
def way(request, monkeypatch):
    monkeypatch.setattr(products, "numpy_is_faster", lambda: request.param)


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


@pytest.mark.usefixtures("blocks", "way")
@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_equals_torchs_except_for_dropout(mask, scaling):
    query, key, value = heads(7, 4)
    given = masks(7)[mask]
    found = attend(query, key, value, given, dropout=1e-9, scaling=scaling)  # rounds to no chance at all
    wanted = functional.scaled_dot_product_attention(query, key, value, given, scale=scaling).transpose(1, 2)
    assert (found - wanted).abs().max() < 1e-6
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours = torch.autograd.grad(found, (query, key, value), slope)
    theirs = torch.autograd.grad(wanted, (query, key, value), slope)
    assert max((a - b).abs().max() for a, b in zip(ours, theirs, strict=True)) < 1e-6


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
def test_attention_passes_gradcheck_with_its_mask(mask):
    given = masks(7)[mask]
    given = given.double() if mask == "added" else given
    assert torch.autograd.gradcheck(
        lambda *inputs: attend(*inputs, given, dropout=0.4), heads(7, 2, dtype=torch.float64)
    )


@pytest.mark.usefixtures("blocks")
def test_each_head_of_each_clip_has_its_own_mask():
    same = torch.ones(2, 3, 7, 4)
    outs = attend(same, same, same, dropout=0.5).transpose(1, 2).flatten(0, 1)
    assert all(not torch.equal(a, b) for i, a in enumerate(outs) for b in outs[:i])


def test_attention_is_right_on_average():
    query, key, value = (x.detach() for x in heads(6, 4))
    mean = torch.stack([attend(query, key, value, seed=seed, dropout=0.3) for seed in range(1500)]).mean(0)
    wanted = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    assert (mean - wanted).abs().max() < 0.1


@pytest.mark.usefixtures("blocks")
def test_checkpointing_draws_the_same_mask_again():
    query, key, value = heads(7, 4)
    kept = attend(query, key, value)
    torch.manual_seed(0)
    again = checkpoint(
        lambda *inputs: attention(Training(), *inputs, None, dropout=CHANCE)[0], query, key, value, use_reentrant=False
    )
    assert torch.equal(kept, again)
    ours = torch.autograd.grad(again.square().sum(), (query, key, value))
    theirs = torch.autograd.grad(kept.square().sum(), (query, key, value))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("scores", [1, 2 * 60 * 60, 1 << 20], ids=["head by head", "two heads", "all heads"])
@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
def test_bfloat16_is_near_float32_even_where_scores_are_large(mask, scores, monkeypatch):
    monkeypatch.setattr(module, "bfloat16_unit", lambda: "amx_bf16")
    monkeypatch.setattr(module, "BLOCK_SCORES", scores)
    query, key, value = heads(60, 16)
    rounded = [x.detach().bfloat16().requires_grad_() for x in (4 * query, 4 * key, value)]
    exact, given = [x.detach().float().requires_grad_() for x in rounded], masks(60)[mask]
    with torch.autocast("cpu", torch.bfloat16):
        outs = [attend(*inputs, given, dropout=0.3) for inputs in (rounded, exact)]  # the same is dropped
    slope = torch.randn(outs[1].shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    ours = torch.autograd.grad(outs[0], rounded, slope)
    theirs = torch.autograd.grad(outs[1], exact, slope.float())
    for found, wanted in zip((outs[0], *ours), (outs[1], *theirs), strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).norm() < 0.01 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torchs_attention_is_used_where_the_processor_has_no_units_for_the_dtype(dtype, monkeypatch):
    monkeypatch.setattr(module, "bfloat16_unit", lambda: None)
    query, key, value = (x.detach().to(dtype) for x in heads(9, 4))
    torch.manual_seed(0)
    wanted = functional.scaled_dot_product_attention(query, key, value, dropout_p=CHANCE).transpose(1, 2)
    assert torch.equal(attend(query, key, value), wanted)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_the_library_uses_this_attention(tiny, tmp_path, kind):
    tiny.model(kind, **tiny.layer_norm).save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    backbone = load_trainable(identify(str(tmp_path)), torch.device("cpu"), "fp32", Regularisation())
    assert (backbone.encoder.config._attn_implementation == ATTENTION) == (kind != "wavlm")
