"""The packed convolutional front end against the library's, clip by clip."""

import pytest
import torch

import extract.backbones.speech.front_end
from extract.backbones.speech.front_end import FrontEnd
from extract.backbones.speech.packed_encoder import PackedEncoder

LENGTHS = [400, 401, 719, 720, 1039, 5000, 24_000, 1200, 400]


@pytest.fixture(params=["layer", "group"])
def model(request, tiny):
    return tiny.model("wav2vec2", **(tiny.layer_norm if request.param == "layer" else {}))


def waveforms(media):
    return [torch.from_numpy(media.speech(2.0, seed)[:n]) + 0.3 for seed, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("block", [1, 3, 64])
def test_every_block_size_gives_the_librarys_features(model, media, monkeypatch, block):
    monkeypatch.setattr(extract.backbones.speech.front_end, "BLOCK_FRAMES", block)
    clips = waveforms(media)
    with torch.inference_mode():
        rows, lengths = FrontEnd(model.feature_extractor, torch.float32)(clips)
        expected = [model.feature_extractor(clip[None])[0].t() for clip in clips]
    assert lengths == [len(clip) for clip in expected]
    torch.testing.assert_close(rows, torch.cat(expected), rtol=0, atol=1e-4)


def test_a_clip_with_a_large_offset_is_normalised_as_by_the_library(model, media):
    """GroupNorm's mean and variance come from the input's covariance, which must not cancel."""
    clip = torch.from_numpy(media.speech(1.0)) + 50.0
    with torch.inference_mode():
        rows, _ = FrontEnd(model.feature_extractor, torch.float32)([clip])
        expected = model.feature_extractor(clip[None])[0].t()
    torch.testing.assert_close(rows, expected, rtol=1e-3, atol=2e-3)


def test_neighbours_in_a_batch_change_nothing(model, media):
    encoder = PackedEncoder(model)
    clips = waveforms(media)
    together, lengths = encoder(clips)
    for i, (clip, alone) in enumerate(zip(clips, together.split(lengths), strict=True)):
        torch.testing.assert_close(encoder([clip])[0], alone, rtol=0, atol=1e-4, msg=f"clip {i}")
