"""Linear layers through NumPy's BLAS against torch's."""

import copy

import pytest
import torch
from torch import nn

import extract.backbones.speech.cpu_training.products as module
from extract.backbones.speech.cpu_training.products import FastLinear, product, use_fast_products


@pytest.fixture(autouse=True)
def _everywhere(monkeypatch):
    monkeypatch.setattr(module, "numpy_is_faster", lambda: True)


@pytest.fixture
def layers():
    """Torch's, and the same weights through NumPy."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 8, bias=False))
    ours = copy.deepcopy(theirs)
    use_fast_products(ours)
    assert [type(layer) for layer in ours] == [FastLinear, nn.GELU, FastLinear]
    return theirs, ours


def gradients(layers, x):
    x = x.clone().requires_grad_()
    out = layers(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in layers.parameters())]


@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24), (0, 24)])
def test_values_and_gradients_are_torchs(layers, shape):
    x = torch.randn(shape)
    for mine, theirs in zip(gradients(layers[1], x), gradients(layers[0], x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_transposed_input_and_frozen_weights(layers):
    theirs, ours = layers
    for part in layers:
        part[0].requires_grad_(False)
    x = torch.randn(24, 6).t()
    expected, found = theirs(x), ours(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert ours[0].weight.grad is None
    assert ours[2].weight.grad.any()


def test_a_frozen_layer_does_not_keep_its_input(layers):
    _, ours = layers
    ours[2].requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        ours[2](torch.randn(6, 40, requires_grad=True))
    assert kept == [ours[2].weight.shape]


def test_without_gradients_and_under_autocast_torchs_layer_is_used(layers, monkeypatch):
    monkeypatch.setattr(module, "product", None)
    x = torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(layers[1](x), layers[0](x))
    with torch.autocast("cpu", torch.bfloat16):
        assert layers[1](x).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_products_of_batches_and_transposed_matrices(dtype):
    a, b = torch.randn(2, 3, 5, 7).to(dtype), torch.randn(2, 3, 9, 7).to(dtype)
    torch.testing.assert_close(product(a, b.transpose(2, 3)), a @ b.transpose(2, 3))
    torch.testing.assert_close(product(b, a.transpose(2, 3)), b @ a.transpose(2, 3))


def test_the_memory_of_a_weight_can_be_freed_and_refilled_after_a_product():
    """As sharding does with the weights that it gathers for a layer."""
    weight = torch.randn(4, 3, requires_grad=True)
    storage = weight.detach().untyped_storage()
    product(torch.randn(2, 3), weight.t())
    storage.resize_(0)
    storage.resize_(4 * 12)
