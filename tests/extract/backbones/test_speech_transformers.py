"""wav2vec 2.0, HuBERT and WavLM in one batch against the library on one unpadded clip at a time."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SAMPLES = [1, 399, 400, 719, 720, 1024, 5000, 16_000, 47_999, 192_000]
"""0.064 s is 1024 samples; 400 give the first frame and 720 the second."""
TOLERANCE = {"rtol": 0, "atol": 2e-4}


LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
CONFIGS = {
    "wav2vec2-base": ("wav2vec2", {}),
    "wav2vec2-large": ("wav2vec2", LARGE),
    "hubert-base": ("hubert", {}),
    "hubert-large": ("hubert", LARGE),
    "wavlm-base": ("wavlm", {}),
    "wavlm-large": ("wavlm", LARGE),
    "odd-position-kernel": ("wav2vec2", {"num_conv_pos_embeddings": 19}),
    "layer-norm-in-front-only": ("wav2vec2", {"feat_extract_norm": "layer", "conv_bias": False}),
    "relu": ("hubert", LARGE | {"hidden_act": "relu", "feat_extract_activation": "relu"}),
    "distilled": ("hubert", {"feat_proj_layer_norm": False}),
    "batch-norm-position": ("hubert", {"conv_pos_batch_norm": True}),
    "attention-adapters": ("wav2vec2", LARGE | {"adapter_attn_dim": 8}),
    "other-convolutions": ("wav2vec2", LARGE | {"conv_dim": [8, 16], "conv_kernel": [25, 7], "conv_stride": [20, 3]}),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny):
    """Folder and model by name, made once."""

    @functools.cache
    def make(name):
        kind, config = CONFIGS[name]
        folder = tmp_path_factory.mktemp(name)
        model = tiny.model(kind, **config)
        model.save_pretrained(folder)
        tiny.save_preprocessor(folder)
        return folder, model

    return make


@pytest.fixture(scope="module")
def audeering(tmp_path_factory, tiny):
    folder = tmp_path_factory.mktemp("audeering")
    return folder, *tiny.save_audeering(folder)


def batch_of(media, samples):
    return [media.speech(n / 16_000, seed)[:n] for seed, n in enumerate(samples)]


def run(backbone, waveforms):
    with torch.inference_mode():
        return backbone([torch.from_numpy(w) for w in waveforms])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_the_library_on_each_clip_alone(checkpoint, media, tiny, load, name):
    folder, model = checkpoint(name)
    backbone, identity = load(folder)
    waveforms = batch_of(media, SAMPLES)
    features = run(backbone, waveforms)
    expected = [tiny.alone(model, w) for w in waveforms]
    assert list(features.lengths) == [len(e) for e in expected] == [backbone.num_frames(n) for n in SAMPLES]
    assert features.frames.dtype == torch.float32
    assert features.frames.shape[1] == identity.dim == 32
    for ours, theirs in zip(features.frames.split(list(features.lengths)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    assert features.vad is None
    assert features.vad_pooled is None


def test_the_regression_head_gives_vad_per_frame_and_of_the_time_mean(audeering, media, tiny, load):
    folder, model, head = audeering
    backbone, identity = load(folder)
    assert identity.vad_names == ("arousal", "dominance", "valence")
    waveforms = batch_of(media, SAMPLES)
    features = run(backbone, waveforms)
    lengths = list(features.lengths)
    assert features.vad.shape == (sum(lengths), 3)
    assert features.vad_pooled.shape == (len(waveforms), 3)
    rows = zip(features.frames.split(lengths), features.vad.split(lengths), features.vad_pooled, strict=True)
    for waveform, (frames, vad, pooled) in zip(waveforms, rows, strict=True):
        expected = tiny.alone(model, waveform)
        torch.testing.assert_close(frames, expected, **TOLERANCE)
        torch.testing.assert_close(vad, head(expected), **TOLERANCE)
        torch.testing.assert_close(pooled, head(expected.mean(dim=0)), **TOLERANCE)


@pytest.mark.parametrize("kind", ["wav2vec2-base", "wavlm-large", "audeering"])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.lists(st.integers(1, 12_000), min_size=1, max_size=6))
def test_any_lengths_in_any_order_equal_single_clips(checkpoint, audeering, media, tiny, load, kind, samples):
    folder, model = audeering[:2] if kind == "audeering" else checkpoint(kind)
    backbone = _once(load, folder)
    waveforms = batch_of(media, samples)
    features = run(backbone, waveforms)
    expected = [tiny.alone(model, w) for w in waveforms]
    assert list(features.lengths) == [len(e) for e in expected]
    torch.testing.assert_close(features.frames, torch.cat(expected), **TOLERANCE)


@given(num_samples=st.integers(400, 1_000_000))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_number_of_frames_follows_the_convolutions(audeering, load, num_samples):
    backbone = _once(load, audeering[0])
    assert backbone.num_frames(num_samples) == int(audeering[1]._get_feat_extract_output_lengths(num_samples))


@functools.cache
def _once(load, folder):
    return load(folder)[0]


def test_one_second_has_49_frames_and_twelve_have_599(audeering, load):
    backbone, identity = load(audeering[0])
    assert [backbone.num_frames(n) for n in (1, 400, 16_000, 192_000)] == [1, 1, 49, 599]
    assert identity.hop_seconds == 0.02


def test_audio_is_not_normalised_where_the_preprocessor_says_so(tmp_path, media, tiny, load):
    model = tiny.model("wavlm")
    model.save_pretrained(tmp_path)
    waveforms = batch_of(media, [8000, 300])
    for normalise in (False, True):
        tiny.save_preprocessor(tmp_path, do_normalize=normalise)
        backbone, identity = load(tmp_path)
        expected = torch.cat([tiny.alone(model, w, normalise) for w in waveforms])
        torch.testing.assert_close(run(backbone, waveforms).frames, expected, **TOLERANCE)
        assert identity.fingerprint["normalisation"] == ("clip-mean-variance" if normalise else "none")


@pytest.mark.parametrize("name", ["wav2vec2-base", "wav2vec2-large", "wavlm-large"])
def test_silence_gives_finite_features(checkpoint, load, name):
    backbone, _ = load(checkpoint(name)[0])
    waveforms = [np.zeros(n, np.float32) for n in (1, 5000, 16_000)]
    assert run(backbone, waveforms).frames.isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["wav2vec2-base", "wav2vec2-large", "wavlm-large"])
def test_lower_precision_stays_close_and_gives_float32(checkpoint, media, load, name, precision):
    folder = checkpoint(name)[0]
    waveforms = batch_of(media, [300, 8000, 24_000])
    exact, rounded = (run(load(folder, p)[0], waveforms).frames for p in ("fp32", precision))
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact, rounded).min() > 0.97


def test_a_backbone_is_in_evaluation_mode_and_repeats_itself(audeering, media, load):
    backbone, _ = load(audeering[0])
    assert not any(module.training for module in backbone.modules())
    first, second = (run(backbone, batch_of(media, [9000, 5000])) for _ in range(2))
    assert torch.equal(first.frames, second.frames)
    assert torch.equal(first.vad_pooled, second.vad_pooled)
