"""Convolutions by rows, with gradients, against the library's own."""

import copy
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import extract.backbones.speech.cpu_training.convolutions as module
from extract.backbones.speech.cpu_training.convolutions import use_rows


@pytest.fixture(params=["layer", "group"])
def extractors(request, tiny):
    """The library's, and the same weights by rows."""
    library = tiny.model("wav2vec2", **(tiny.layer_norm if request.param == "layer" else {})).train()
    rows = copy.deepcopy(library)
    use_rows(rows, checkpointing=False)
    return library.feature_extractor, rows.feature_extractor


def learn(extractor, batch, weights):
    """Frames, and the gradient of each weight of a number that depends on all frames."""
    extractor.zero_grad()
    frames = extractor(batch)
    (frames.float() * weights).sum().backward()
    return frames.detach(), {name: p.grad.clone() for name, p in extractor.named_parameters()}


def near(found, expected, relative):
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= relative * gradient.norm(), name


@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("samples", [400, 719, 720, 9_999])
def test_frames_and_gradients_are_the_librarys(extractors, media, monkeypatch, block, samples):
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    library, rows = extractors
    batch = torch.stack([torch.from_numpy(media.speech(1.0, seed)[:samples]) for seed in range(3)])
    weights = torch.randn(library(batch).shape, generator=torch.Generator().manual_seed(0))
    expected, found = learn(library, batch, weights), learn(rows, batch, weights)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-4)
    near(found[1], expected[1], 1e-4)


def test_checkpointing_changes_no_gradient_and_keeps_no_activations(extractors, media, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_FRAMES", 7)
    monkeypatch.setattr(module, "CHECKPOINTED_FRAMES", 7)
    batch = torch.from_numpy(media.speech(1.0))[None]
    kept = {}
    results = {}
    for checkpointing in (False, True):
        encoder = SimpleNamespace(feature_extractor=copy.deepcopy(extractors[0]))
        use_rows(encoder, checkpointing=checkpointing)
        extractor = encoder.feature_extractor
        sizes = kept.setdefault(checkpointing, [])
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            frames = extractor(batch)
        frames.square().sum().backward()
        results[checkpointing] = {name: p.grad for name, p in extractor.named_parameters()}
    near(results[True], results[False], 1e-6)
    assert sum(kept[True]) < sum(kept[False]) / 5


@pytest.mark.parametrize("block", [1, 512])
def test_bfloat16_is_as_near_as_the_librarys_autocast(extractors, media, monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    library, rows = extractors
    ours, theirs = Counter(), Counter()
    # One rounding error of 16 numbers is now twice another by chance; summed over six batches the two compare.
    for seed in range(6):
        batch = torch.stack([torch.from_numpy(media.speech(1.0, 2 * seed + i)) for i in range(2)])
        weights = torch.randn(library(batch).shape, generator=torch.Generator().manual_seed(seed))
        exact = learn(library, batch, weights)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = learn(rows, batch, weights), learn(library, batch, weights)
        assert found[0].dtype == torch.bfloat16
        ours += errors(found, exact)
        theirs += errors(expected, exact)
    assert ours.keys() == theirs.keys() == {"frames", *dict(library.named_parameters())}
    for name, error in theirs.items():
        assert ours[name] <= 2**2 * error + 1e-6, name


def errors(found, exact):
    """Of frames and of each gradient, the squared relative error."""
    (frames, gradients), (exact_frames, exact_gradients) = found, exact
    pairs = {"frames": (frames, exact_frames)} | {n: (g, exact_gradients[n]) for n, g in gradients.items()}
    return Counter({n: float((a.float() - b).square().sum() / b.square().sum()) for n, (a, b) in pairs.items()})


def test_a_copied_model_uses_its_own_weights(extractors, media):
    _, rows = extractors
    batch = torch.from_numpy(media.speech(1.0))[None]
    before, twin = rows(batch), copy.deepcopy(rows)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert torch.equal(rows(batch), before)
    assert not twin(batch).any()


def test_where_the_first_layers_are_frozen_the_others_learn(extractors, media):
    _, rows = extractors
    for layer in rows.conv_layers[:3]:
        layer.requires_grad_(False)
    rows(torch.from_numpy(media.speech(1.0))[None]).square().sum().backward()
    assert all((p.grad is not None and p.grad.any()) == p.requires_grad for p in rows.parameters())
