"""What is private of torch and accelerate: each thing taken away, or changed, and the public way gives the same."""

import importlib
import subprocess
import sys

import pytest
import torch

from extract import private
from extract.backbones import packed_weights
from extract.backbones.packed_weights import PackedConv1d, PackedLinear

OPERATORS = ("_reorder_linear_weight", "_linear_pointwise", "_reorder_convolution_weight", "_convolution_pointwise")


class Without:
    """oneDNN's operators, one of them gone or doing something else."""

    def __init__(self, operators, name, instead=None):
        self._operators, self._name, self._instead = operators, name, instead

    def __getattr__(self, name):
        if name != self._name:
            return getattr(self._operators, name)
        if self._instead is None:
            raise AttributeError(name)
        return self._instead


@pytest.fixture
def changed():
    """Change torch, and look again at what can be used of it; at the end as before."""
    with pytest.MonkeyPatch.context() as patch:

        def change(place, name, value=None, *, gone=False):
            patch.delattr(place, name) if gone else patch.setattr(place, name, value)
            importlib.reload(private)

        yield change
    importlib.reload(private)


def results():
    """Of a linear layer, a convolution and softmax's gradient."""
    numbers = torch.Generator().manual_seed(0)
    rows, weight, bias = (torch.randn(*shape, generator=numbers) for shape in ((9, 64), (32, 64), (32,)))
    kernel = torch.randn(64, 16, 8, generator=numbers)
    grad, probabilities = torch.randn(3, 50, generator=numbers), torch.randn(3, 50, generator=numbers).softmax(dim=-1)
    with torch.inference_mode():
        return (
            PackedLinear(weight, bias, torch.float32)(rows),
            PackedLinear(weight, bias, torch.float32, gelu="tanh")(rows),
            PackedConv1d(kernel, None, 4, torch.float32)(rows),
            private.softmax_backward(grad, probabilities),
        )


@pytest.fixture(autouse=True)
def _as_on_amd(monkeypatch):
    monkeypatch.setattr(packed_weights, "mkl_is_faster", lambda: False)


def usable():
    return torch.float32 in private.LINEAR, torch.float32 in private.CONVOLUTION, private.SOFTMAX_BACKWARD


def test_all_private_operators_are_used_where_torch_has_them():
    built = torch.backends.mkldnn.is_available()
    assert usable() == (built, built, True)


@pytest.mark.parametrize("how", ["gone", "another signature", "other numbers"])
@pytest.mark.parametrize("name", OPERATORS)
def test_without_an_operator_of_onednn_the_public_function_gives_the_same(changed, name, how):
    instead = {
        "gone": None,
        "another signature": lambda only_one: only_one,
        "other numbers": lambda *_: torch.zeros(9, 48),
    }
    expected = results()
    changed(torch.ops, "mkldnn", Without(torch.ops.mkldnn, name, instead[how]))
    assert usable() == ("linear" not in name, "convolution" not in name, True)
    for one, other in zip(results(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_without_the_word_on_bfloat16_it_is_tried(changed):
    linear, convolution = private.LINEAR, private.CONVOLUTION
    changed(torch.ops, "mkldnn", Without(torch.ops.mkldnn, "_is_mkldnn_bf16_supported"))
    assert linear == private.LINEAR
    assert convolution == private.CONVOLUTION


@pytest.mark.parametrize("how", ["gone", "other numbers"])
def test_without_softmaxs_gradient_the_formula_gives_the_same(changed, how):
    expected = results()[2]
    changed(torch, "_softmax_backward_data", lambda *_: torch.zeros(3, 16), gone=how == "gone")
    assert not private.SOFTMAX_BACKWARD
    torch.testing.assert_close(results()[2], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_both_softmax_gradients_equal_autograd(dtype):
    scores = torch.linspace(-3, 3, 60, dtype=torch.float64).view(4, 15).requires_grad_()
    grad = torch.linspace(1, -2, 60, dtype=torch.float64).view(4, 15).sin()
    scores.softmax(dim=-1).backward(grad)
    given = grad.to(dtype), scores.detach().softmax(dim=-1).to(dtype)
    rounding = 2e-2 if dtype == torch.bfloat16 else 1e-6
    for way in (private.softmax_backward, private._public_softmax_backward):
        assert way(*given).dtype == dtype
        torch.testing.assert_close(way(*given).double(), scores.grad, rtol=rounding, atol=rounding)


def test_importing_private_does_not_change_torchs_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    importlib.reload(private)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("name", ["_shared_state", "_reset_state", None])
def test_accelerates_state_is_restored_or_not_changed(monkeypatch, name):
    from accelerate import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {"found": "before"})
    if name:
        monkeypatch.delattr(PartialState, name)
    with private.without_accelerate_state():
        if name is None:
            assert PartialState._shared_state == {}
            PartialState._shared_state["found"] = "within"
    if name != "_shared_state":
        assert PartialState._shared_state == {"found": "before"}


def test_a_program_that_forks_after_the_import_computes_in_its_child():
    code = """
import os, signal
import extract.private
import torch
if os.fork() == 0:
    signal.alarm(20)
    torch.randn(500, 500) @ torch.randn(500, 500)
    torch.index_select(torch.randn(3000, 100), 0, torch.arange(2999))
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
