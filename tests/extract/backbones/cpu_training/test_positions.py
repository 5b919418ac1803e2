"""The positional convolution by spectra against torch's convolution."""

import copy

import pytest
import torch
from torch.nn import functional

from extract.backbones.speech.cpu_training.convolutions import convolve, use_fourier


@pytest.mark.parametrize("kernel", [1, 2, 7, 128])
@pytest.mark.parametrize("more", [0, 1, 127, 128, 129, 600])
def test_values_and_gradients_are_those_of_a_convolution(kernel, more):
    torch.manual_seed(0)
    signal = torch.randn(3, 12, kernel + more, requires_grad=True)
    weight = torch.randn(12, 4, kernel, requires_grad=True)
    expected = functional.conv1d(signal, weight, groups=3)
    found = convolve(signal, weight, 3)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    slope = torch.randn(expected.shape)
    pairs = zip(
        torch.autograd.grad(found, [signal, weight], slope),
        torch.autograd.grad(expected, [signal, weight], slope),
        strict=True,
    )
    for mine, theirs in pairs:
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("family", ["wav2vec2", "hubert", "wavlm"])
def test_the_library_uses_this_convolution(tiny, family, monkeypatch):
    library = tiny.model(family)
    ours = copy.deepcopy(library)
    use_fourier(ours)
    frames = torch.randn(2, 30, library.config.hidden_size, generator=torch.Generator().manual_seed(0))
    expected, part = library.encoder.pos_conv_embed(frames), ours.encoder.pos_conv_embed
    torch.testing.assert_close(part(frames), expected, rtol=1e-4, atol=1e-5)
    twin = copy.deepcopy(part)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    torch.testing.assert_close(part(frames), expected, rtol=1e-4, atol=1e-5)
    assert sorted(ours.state_dict()) == sorted(library.state_dict())
    monkeypatch.setattr("extract.backbones.speech.cpu_training.convolutions.convolve", None)
    with pytest.raises(TypeError):
        part(frames)  # it was that function
    with torch.autocast("cpu", torch.bfloat16):
        assert part(frames).dtype == torch.bfloat16
