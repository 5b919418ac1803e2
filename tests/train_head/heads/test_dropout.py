"""Dropout on a CPU: torch's numbers and gradients, but for which values are dropped."""

import pytest
import torch

from train_head.heads.dropout import CheapDropout


def test_the_chance_and_the_mean_are_those_of_dropout_and_the_seed_decides():
    layer, x = CheapDropout(0.25), torch.ones(1000, 1001, requires_grad=True)
    torch.manual_seed(0)
    found = layer(x)
    torch.manual_seed(0)
    assert torch.equal(found, layer(x))
    assert not torch.equal(found, layer(x))
    # 1e6 draws: three standard deviations of a share are 0.0013
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.0013)
    assert found.max().item() == pytest.approx(1 / 0.75, rel=1e-6)
    found.sum().backward()
    assert torch.equal(x.grad, found.detach())
    assert torch.equal(layer.eval()(x), x)


def test_in_place_it_gives_the_same_and_needs_no_copy():
    x = torch.randn(30, 40, requires_grad=True)
    found = []
    for inplace in (False, True):
        torch.manual_seed(0)
        before = x * 2  # whose gradient does not need its value
        after = CheapDropout(0.3, inplace=inplace)(before)
        assert (after.data_ptr() == before.data_ptr()) == inplace
        found.append((after.detach().clone(), *torch.autograd.grad(after.square().sum(), x)))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
