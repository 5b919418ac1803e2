"""Whisper's encoder at the clips' true length, against the layers of the transformers library."""

import json

import numpy as np
import pytest
import torch

from extract.backbones import MODEL_TYPES, family_of, identify
from extract.backbones.whisper.family import WHISPER
from extract.errors import BackboneError, ExtractSettingsError
from train_head.data.labels import read_labels

CPU = torch.device("cpu")
POSITIONS = 50
"""One second, so that pieces are tried in little time."""
CONFIG = {
    "d_model": 24,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 32,
    "num_mel_bins": 80,
    "max_source_positions": POSITIONS,
    "max_target_positions": 8,
    "vocab_size": 60,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random Whisper for recognition, decoder and all, whose every weight changes its output."""
    import transformers

    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**CONFIG)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or "norm" in name or "conv" in name or "embed_positions" in name:
                weight.add_(0.1 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("whisper-tiny")
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    return folder, model.model.encoder


def sound(seconds: float, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * 16_000)) / 16_000
    tone = np.sin(2 * np.pi * (200 + 300 * rng.random()) * t)
    return torch.from_numpy((0.3 * tone + 0.05 * rng.standard_normal(len(t))).astype(np.float32))


def library(encoder, samples: torch.Tensor, layer: int | None) -> torch.Tensor:
    """The library's spectra and layers on each unpadded piece."""
    from torch.nn.functional import gelu
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=80)
    found = []
    for piece in samples.split(320 * POSITIONS):
        spectra = torch.from_numpy(extractor._np_extract_fbank_features(piece.numpy()[None], "cpu")[0]).float()
        states = gelu(encoder.conv2(gelu(encoder.conv1(spectra[None])))).permute(0, 2, 1)
        states = states + encoder.embed_positions.weight[: states.shape[1]]
        for block in encoder.layers[:layer]:
            out = block(states, None)
            states = out[0] if isinstance(out, tuple) else out
        found.append((encoder.layer_norm(states) if layer is None else states)[0])
    return torch.cat(found)


@pytest.mark.parametrize("layer", [None, 0, 1, 3])
def test_a_batch_equals_the_library_on_each_clip_alone(checkpoint, layer):
    folder, encoder = checkpoint
    identity = WHISPER.identify(str(folder), layer)
    backbone = WHISPER.load(identity, CPU, "fp32")
    clips = [sound(s, i) for i, s in enumerate([0.4, 0.99, 0.025, 2.63, 1.0, 0.0437])]
    with torch.inference_mode():
        features = backbone(clips)
        expected = [library(encoder, clip, layer) for clip in clips]
    assert features.lengths == [len(e) for e in expected] == [backbone.num_frames(len(c)) for c in clips]
    assert features.frames.shape[1] == identity.dim == 24
    # spectra of the library are made in float64, and a logarithm makes more of what float32 rounds
    torch.testing.assert_close(features.frames, torch.cat(expected), atol=2e-4, rtol=2e-4)


def test_a_batch_equals_single_clips(checkpoint):
    backbone = WHISPER.load(WHISPER.identify(str(checkpoint[0])), CPU, "fp32")
    clips = [sound(s, i) for i, s in enumerate([0.4, 0.99, 0.01, 1.7])]
    with torch.inference_mode():
        together = backbone(clips).frames.split(backbone(clips).lengths)
        for clip, found in zip(clips, together, strict=True):
            torch.testing.assert_close(found, backbone([clip]).frames, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 399, 400])
def test_the_shortest_clips_give_one_state(checkpoint, samples):
    backbone = WHISPER.load(WHISPER.identify(str(checkpoint[0])), CPU, "fp32")
    with torch.inference_mode():
        features = backbone([torch.zeros(samples)])
    assert features.lengths == [1]
    assert features.frames.isfinite().all()


def test_bfloat16_stays_near_float32(checkpoint):
    identity = WHISPER.identify(str(checkpoint[0]))
    clips = [sound(0.8)]
    with torch.inference_mode():
        low, high = (WHISPER.load(identity, CPU, precision)(clips).frames for precision in ("bf16", "fp32"))
    assert low.dtype == torch.float32
    assert (low - high).abs().mean() < 0.02 * high.abs().mean()


def test_the_layer_is_in_the_fingerprint(checkpoint):
    folder = str(checkpoint[0])
    assert WHISPER.identify(folder).fingerprint["layer"] == "last"
    assert WHISPER.identify(folder, 1).fingerprint["layer"] == 1
    with pytest.raises(ExtractSettingsError, match=r"--layer 4.*has 3 layers; give 0 to 3"):
        WHISPER.identify(folder, 4)


def test_a_missing_weight_is_named(checkpoint, tmp_path):
    import safetensors.torch

    tensors = safetensors.torch.load_file(checkpoint[0] / "model.safetensors")
    safetensors.torch.save_file(
        {k: v for k, v in tensors.items() if "encoder.layers.1.fc1.bias" not in k}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text((checkpoint[0] / "config.json").read_text())
    identity = WHISPER.identify(str(tmp_path))
    with pytest.raises(BackboneError, match=r"the weight encoder\.layers\.1\.fc1\.bias is missing"):
        WHISPER.load(identity, CPU, "fp32")


def test_other_spectra_are_refused(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint[0] / name).read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"n_fft": 512}))
    with pytest.raises(BackboneError, match=r"n_fft is 512, and emi computes Whisper's spectra with 400"):
        WHISPER.identify(str(tmp_path))


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.005, 2.63])
@pytest.mark.parametrize("block", [700, 16_000, 100_000])
def test_a_clip_in_blocks_equals_the_whole_clip(checkpoint, seconds, block):
    backbone = WHISPER.load(WHISPER.identify(str(checkpoint[0])), CPU, "fp32")
    clip = sound(seconds)
    with torch.inference_mode():
        found, whole = torch.cat(list(backbone.in_blocks(clip.split(block)))), backbone([clip])
    assert len(found) == backbone.num_frames(len(clip)) == whole.lengths[0]
    torch.testing.assert_close(found, whole.frames, atol=1e-6, rtol=1e-6)


def test_a_folder_with_whispers_configuration_is_run_as_whisper(checkpoint, tmp_path, media):
    import emi

    identity = identify(str(checkpoint[0]))
    assert (identity.dim, identity.hop_seconds, identity.fingerprint["normalisation"]) == (24, 0.02, "log-mel")
    assert family_of(str(checkpoint[0])) is MODEL_TYPES["whisper"]
    (tmp_path / "media").mkdir()
    media.write(tmp_path / "media" / "a.wav", sound(1.3).numpy())
    for layer, cache in ((None, "last.zarr"), (1, "one.zarr")):
        emi.extract(tmp_path / "media", tmp_path / cache, backbone=str(checkpoint[0]), precision="fp32", layer=layer)
    with emi.open_cache(tmp_path / "last.zarr") as last, emi.open_cache(tmp_path / "one.zarr") as one:
        assert (last.fingerprint["layer"], one.fingerprint["layer"]) == ("last", 1)
        assert last["a"].frames.shape == one["a"].frames.shape == (65, 24)
        assert not np.array_equal(last["a"].frames, one["a"].frames)
    with pytest.raises(emi.EmiError, match=r"layer \(stored last, wanted 1\)"):
        emi.extract(tmp_path / "media", tmp_path / "last.zarr", backbone=str(checkpoint[0]), precision="fp32", layer=1)


def test_a_layer_of_another_backbone_is_refused():
    with pytest.raises(ExtractSettingsError, match=r"--layer 3 chooses a layer of a Whisper encoder, and .*'silero'"):
        identify("silero", layer=3)


def test_a_run_on_a_layer_predicts_with_that_layer(checkpoint, labelled, tmp_path):
    import emi

    emi.extract(labelled / "audio", tmp_path / "f.zarr", backbone=str(checkpoint[0]), precision="fp32", layer=2)
    run = tmp_path / "run"
    emi.train_head(tmp_path / "f.zarr", labelled / "train.csv", labelled / "valid.csv", run, epochs=1, hidden=8)
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    values = {record["Filename"]: list(record.values())[1:] for record in emi.load(run).predict(labelled / "audio")}
    np.testing.assert_allclose([values[clip] for clip in expected.ids], expected.values, atol=1e-5)
