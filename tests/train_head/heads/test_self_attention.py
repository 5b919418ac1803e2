"""Attention on a CPU: torch's numbers and gradients, but for which values are dropped."""

import copy

import pytest
import torch
from torch import nn

from train_head.heads import self_attention
from train_head.heads.self_attention import CheapAttention, _Attention, with_cheap_dropout


def layers(chance: float, **options) -> tuple[nn.TransformerEncoderLayer, nn.TransformerEncoderLayer]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, chance, batch_first=True, **options)
    return layer, with_cheap_dropout(copy.deepcopy(layer))


def outside() -> torch.Tensor:
    return torch.tensor([[False] * 7, [False] * 4 + [True] * 3])


@pytest.mark.parametrize("mask", [None, outside()])
@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_equals_torchs_where_nothing_is_dropped(mask, norm_first):
    theirs, own = layers(1e-9, norm_first=norm_first)  # rounds to no chance at all
    assert list(own.state_dict()) == list(theirs.state_dict())
    rows = torch.randn(2, 7, 8)
    found, wanted = own.train()(rows, src_key_padding_mask=mask), theirs.eval()(rows, src_key_padding_mask=mask)
    inside = torch.ones(2, 7, dtype=torch.bool) if mask is None else ~mask
    torch.testing.assert_close(found[inside], wanted[inside], atol=1e-5, rtol=1e-5)
    slope = torch.randn(2, 7, 8) * inside.unsqueeze(-1)
    for output in (found, wanted):
        output.backward(slope, retain_graph=True)
    for (name, one), other in zip(own.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
    torch.testing.assert_close(
        own.eval()(rows, src_key_padding_mask=mask)[inside], wanted[inside], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 4, [False, False, True, True]])])
@pytest.mark.parametrize("block", [1, 2 * 16, 1 << 20])  # one clip and head at a time; two heads; everything
def test_the_gradient_of_attention_is_that_of_its_numbers_with_the_same_values_dropped(mask, block, monkeypatch):
    monkeypatch.setattr(self_attention, "BLOCK", block)
    bias = None if mask is None else torch.zeros(2, 4).masked_fill_(mask, -torch.inf)

    def attend(x, weight, offset):
        torch.manual_seed(3)
        return _Attention.apply(x, weight, offset, bias, 2, 0.25)

    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 8), (24, 8), (24,))]
    assert torch.autograd.gradcheck(attend, inputs)

    x, weight, offset = (part.detach() for part in inputs)
    ones = torch.eye(4, dtype=torch.float64).repeat(2, 2)  # as values of 8 rows, so that each head gives its weights
    weight[16:], offset[16:] = (torch.linalg.pinv(x.flatten(0, 1)) @ ones).mT, 0
    query, key, _ = nn.functional.linear(x, weight, offset).unflatten(2, (3, 2, 4)).unbind(dim=2)
    scores = torch.einsum("brhs,bkhs->bhrk", query, key) / 4**0.5
    wanted = (scores if bias is None else scores + bias[:, None, None]).softmax(dim=3) / 0.75
    found = attend(x, weight, offset).unflatten(2, (2, 4)).transpose(1, 2)
    kept = found.abs() > 1e-9  # pinv leaves errors of about 1e-14 in values
    assert 0.05 < (~kept & (wanted > 1e-6)).sum() / (wanted > 1e-6).sum() < 0.6
    torch.testing.assert_close(found[kept], wanted[kept], atol=1e-9, rtol=1e-9)


def test_bfloat16_attention_stays_near_float32():
    theirs, own = layers(1e-9)
    assert isinstance(own.self_attn, CheapAttention)
    rows = torch.randn(2, 7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = own.train()(rows)
    torch.testing.assert_close(found.float(), theirs.eval()(rows), atol=0.05, rtol=0.05)


def test_rows_that_lie_time_major_have_the_same_gradient():
    _, layer = layers(1e-9)
    rows = torch.randn(2, 7, 8)
    found = []
    for given in (rows, rows.transpose(0, 1).contiguous().transpose(0, 1)):
        given.requires_grad_()
        out = layer.train()(given)
        found.append((out.detach(), *torch.autograd.grad(out.square().sum(), given)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
