"""The batched silero encoder against the package's own model, streamed window by window."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from extract.backbones import BACKBONES, family_of, identify
from extract.backbones.silero.family import weights_file
from extract.backbones.silero.layout import DIM
from extract.errors import BackboneError

WINDOW = 512
SAMPLES = [1, 511, 512, 513, 16_000, 192_000]


@pytest.fixture(scope="module")
def backbone(load):
    return load("silero")[0]


@pytest.fixture(scope="module")
def streamed():
    """(frames, 384) of one clip by the package's own TorchScript: conv output, then the h and c it carries on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(weights_file("silero")), map_location="cpu")

    @torch.inference_mode()
    def stream(waveform):
        model.reset_states()
        rows, context = [], torch.zeros(1, 64)
        for window in torch.nn.functional.pad(waveform, (0, -len(waveform) % WINDOW)).split(WINDOW):
            model(window[None], 16_000)
            seen = torch.cat([context, window[None]], dim=1)
            encoded = model._model.encoder(model._model.stft(seen))
            rows.append(torch.cat([encoded.reshape(128), model._state.reshape(256)]))
            context = window[None, -64:]
        return torch.stack(rows)

    return stream


def clips(media, samples):
    return [torch.from_numpy(media.speech(n / 16_000, seed)[:n]) for seed, n in enumerate(samples)]


def run(backbone, waveforms):
    with torch.inference_mode():
        features = backbone(waveforms)
    return features.frames.split(list(features.lengths))


def test_a_batch_equals_the_packages_streaming_model(backbone, streamed, media):
    waveforms = clips(media, SAMPLES)
    for ours, waveform in zip(run(backbone, waveforms), waveforms, strict=True):
        torch.testing.assert_close(ours, streamed(waveform), rtol=0, atol=1e-4)


def test_the_speech_probability_equals_the_packages(backbone, media):
    """The decoder's last layer on our h gives the package's speech probability."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.load(str(weights_file("silero")), map_location="cpu")
    state = model.state_dict()
    weight, bias = (state[f"_model.decoder.decoder.2.{name}"].flatten() for name in ("weight", "bias"))
    waveform = clips(media, [48_000])[0]
    hidden = run(backbone, [waveform])[0][:, 128:256]
    ours = torch.sigmoid(hidden.relu() @ weight + bias)
    with torch.inference_mode():
        model.reset_states()
        padded = torch.nn.functional.pad(waveform, (0, -len(waveform) % WINDOW))
        theirs = torch.cat([model(window[None], 16_000)[0] for window in padded.split(WINDOW)])
    assert theirs.max() > 0.5 > theirs.min()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 512, 262_143, 262_145, 700_000])
@pytest.mark.parametrize("block", [1000, 160_000])
def test_a_clip_in_blocks_equals_the_whole_clip(backbone, media, samples, block):
    (clip,) = clips(media, [samples])
    with torch.inference_mode():
        found = torch.cat(list(backbone.in_blocks(clip.split(block))))
    torch.testing.assert_close(found, run(backbone, [clip])[0], rtol=1e-6, atol=1e-6)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.lists(st.integers(1, 9000), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_neither_neighbours_nor_order_change_a_clip(backbone, media, samples, seed):
    waveforms = clips(media, samples)
    order = np.random.default_rng(seed).permutation(len(samples))
    batched = run(backbone, [waveforms[i] for i in order])
    for ours, i in zip(batched, order, strict=True):
        assert len(ours) == backbone.num_frames(samples[i]) == max(1, -(-samples[i] // WINDOW))
        torch.testing.assert_close(ours, run(backbone, [waveforms[i]])[0], rtol=1e-5, atol=5e-5)


def test_gradients_reach_every_weight_and_the_audio(load, media):
    backbone = load("silero")[0]
    waveforms = [w.clone().requires_grad_() for w in clips(media, [700, 5000])]
    backbone(waveforms).frames.square().mean().backward()
    for name, weight in backbone.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.abs().sum() > 0, name
    assert all(w.grad.isfinite().all() and w.grad.any() for w in waveforms)


def test_silence_gives_finite_features(backbone):
    assert all(frames.isfinite().all() for frames in run(backbone, [torch.zeros(1), torch.zeros(20_000)]))


def test_torch_keeps_its_number_of_threads(load, media):
    """Importing the package silero_vad would set it to 1 for the whole process."""
    before = torch.get_num_threads()
    run(load("silero")[0], clips(media, [2000]))
    assert torch.get_num_threads() == before


def test_the_identity_of_silero():
    identity = identify("silero")
    assert (identity.dim, identity.hop_seconds, identity.vad_names) == (DIM, 0.032, ())
    assert identity.precisions == ("fp32",)
    assert len(identity.fingerprint["weights_sha256"]) == 64


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackboneError, match="pip install silero-vad"):
        identify("silero")


def test_other_weights_name_the_version_that_is_known(load, monkeypatch):
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: torch.nn.Linear(1, 1))
    with pytest.raises(BackboneError, match=r"silero-vad==6\.2\.3"):
        load("silero")


def test_a_package_can_add_a_family(monkeypatch):
    class Entry:
        name = "mine"

        def load(self):
            return BACKBONES["silero"]

    monkeypatch.setattr("extract.backbones.entry_points", lambda group: [Entry()] if group == "emi.backbones" else [])
    assert family_of("mine") is BACKBONES["silero"]
    with pytest.raises(BackboneError, match="neither a folder nor in the local Hugging Face cache"):
        family_of("others/id")
