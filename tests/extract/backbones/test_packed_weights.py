"""Weights laid out for oneDNN against torch's public functions."""

import pytest
import torch
from torch.nn import functional

from extract.backbones import packed_weights
from extract.backbones.packed_weights import PackedConv1d, PackedLinear, can_pack, wrong_below_float32

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def relative_error(ours, expected):
    return float((ours.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 10, 512), (49, 512, 1024), (700, 96, 3)])
def test_a_linear_layer_equals_torchs(monkeypatch, rows, inputs, outputs, biased, dtype, intel):
    monkeypatch.setattr(packed_weights, "mkl_is_faster", lambda: intel)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs) if biased else None
    with torch.inference_mode():
        ours = PackedLinear(weight, bias, dtype)(x)
    assert ours.dtype == dtype
    assert relative_error(ours, functional.linear(x, weight, bias)) < ROUNDING[dtype]


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_gelu_behind_a_linear_layer_equals_torchs(monkeypatch, approximate, dtype, intel):
    monkeypatch.setattr(packed_weights, "mkl_is_faster", lambda: intel)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(49, 96), torch.randn(384, 96), torch.randn(384)
    with torch.inference_mode():
        ours = PackedLinear(weight, bias, dtype, gelu=approximate)(x)
    assert ours.dtype == dtype
    expected = functional.gelu(functional.linear(x, weight, bias), approximate=approximate)
    assert relative_error(ours, expected) < ROUNDING[dtype]


@pytest.mark.parametrize("intel", [True, False])
def test_a_linear_layer_reads_rows_that_overlap_in_memory(monkeypatch, intel):
    monkeypatch.setattr(packed_weights, "mkl_is_faster", lambda: intel)
    torch.manual_seed(0)
    signal, weight = torch.randn(101, 8), torch.randn(16, 24)
    with torch.inference_mode():
        ours = PackedLinear(weight, None, torch.float32)(signal.as_strided((50, 24), (16, 1)))
    expected = functional.conv1d(signal.t()[None], weight.view(16, 3, 8).permute(0, 2, 1), stride=2)[0].t()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_group", [2, 4, 16, 48])
@pytest.mark.parametrize("kernel", [3, 128])
@pytest.mark.parametrize("time", [1, 75])
def test_a_grouped_convolution_equals_torchs_in_float32(time, kernel, per_group, dtype):
    """Few channels per group and a long kernel are what oneDNN gets wrong below float32 where there is AMX."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(time, 4 * per_group), torch.randn(4 * per_group, per_group, kernel), None
    with torch.inference_mode():
        ours = PackedConv1d(weight, bias, 4, dtype)(x)
    expected = functional.conv1d(x.t()[None], weight, bias, padding=kernel // 2, groups=4)[0, :, :time].t()
    assert ours.shape == x.shape
    assert relative_error(ours, expected) < ROUNDING[dtype]
    assert wrong_below_float32(weight) == (per_group < 16)


def test_without_onednn_torch_computes_the_same_product(monkeypatch):
    x, weight = torch.randn(5, 32), torch.randn(32, 32)
    expected = functional.linear(x, weight)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not can_pack(weight)
    torch.testing.assert_close(PackedLinear(weight, None, torch.float32)(x), expected)
    kernel = torch.randn(32, 16, 5)
    signal = functional.conv1d(x.t()[None], kernel, padding=2, groups=2)[0].t()
    torch.testing.assert_close(PackedConv1d(kernel, None, 2, torch.float32)(x), signal)
