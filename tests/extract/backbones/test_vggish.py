"""VGGish against its published front end in NumPy, one example at a time, and against layers written out."""

import functools
import json
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from torch.nn import functional

import emi
from cache import StaleCacheError
from extract.audio.timed_sound import TimedSound
from extract.backbones import identify
from extract.backbones.checkpoint import save_checkpoint
from extract.backbones.vggish import network
from extract.backbones.vggish.family import VGGISH
from extract.backbones.vggish.log_mel import LogMel
from extract.errors import BackboneError, ExtractSettingsError

CPU = torch.device("cpu")
HIDDEN = 24
"""In place of 4096, so that weights are 20 MB and not 290."""
CONVOLUTIONS = {0: (1, 64), 3: (64, 128), 6: (128, 256), 8: (256, 256), 11: (256, 512), 13: (512, 512)}
POOLED_AFTER = (0, 3, 8, 13)


def published(hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the state dict of torchvggish."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inputs, outputs) in CONVOLUTIONS.items():
        shapes |= {f"features.{number}.weight": (outputs, inputs, 3, 3), f"features.{number}.bias": (outputs,)}
    for number, (inputs, outputs) in {0: (12288, hidden), 2: (hidden, hidden), 4: (hidden, 128)}.items():
        shapes |= {f"embeddings.{number}.weight": (outputs, inputs), f"embeddings.{number}.bias": (outputs,)}
    return shapes


def random_state(hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=numbers) * (2 / max(1, np.prod(shape[1:]))) ** 0.5
        if len(shape) > 1
        else 0.1 * torch.randn(shape, generator=numbers)
        for name, shape in published(hidden).items()
    }


def layers(state: dict[str, torch.Tensor], examples: np.ndarray, *, last_relu: bool) -> torch.Tensor:
    """(examples, 96, 64) → (examples, 128), with each place of the last maps put where its weights are."""
    maps = torch.from_numpy(examples).float()[:, None]
    for number in CONVOLUTIONS:
        maps = functional.conv2d(maps, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
        maps = maps.clamp(min=0)
        maps = functional.max_pool2d(maps, 2, 2) if number in POOLED_AFTER else maps
    flat = torch.stack([maps[:, c, t, f] for t in range(6) for f in range(4) for c in range(512)], dim=1)
    for number in (0, 2, 4):
        flat = flat @ state[f"embeddings.{number}.weight"].T + state[f"embeddings.{number}.bias"]
        flat = flat.clamp(min=0) if number < 4 or last_relu else flat
    return flat


@functools.cache
def bands() -> np.ndarray:
    """(257, 64) triangles on the mel scale."""

    def mel(hertz):
        return 1127 * np.log(1 + hertz / 700)

    edges = np.linspace(mel(125.0), mel(7500.0), 66)
    found = np.zeros((257, 64))
    for band in range(64):
        lower, centre, upper = edges[band : band + 3]
        for bin in range(257):
            at = mel(bin * 16_000 / 512)
            found[bin, band] = max(0, min((at - lower) / (centre - lower), (upper - at) / (upper - centre)))
    return found


def example(samples: np.ndarray, start: int) -> np.ndarray:
    """(96, 64) float64: log-mel of the example that starts at this hundredth of a second; zeros follow the end."""
    sound = np.concatenate([samples.astype(np.float64), np.zeros(16_000 + 160 * start)])[160 * start :]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([sound[160 * i : 160 * i + 400] * window for i in range(96)])
    magnitudes = np.abs(np.fft.rfft(frames, 512))
    return np.log(magnitudes @ bands() + 0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small VGGish in the layout of torchvggish, whose last ReLU is left out, and its weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "HIDDEN", HIDDEN)
        folder, state = tmp_path_factory.mktemp("vggish"), random_state()
        save_checkpoint(folder, state, {"model_type": "vggish", "last_relu": False})
        yield folder, state


@pytest.fixture(scope="module")
def backbone(folder):
    """With a row every 40 ms."""
    return VGGISH.load(replace(identify(str(folder[0])), hop_seconds=0.04), CPU, "fp32")


def signals(media) -> dict[str, np.ndarray]:
    t = np.arange(20_000) / 16_000
    faint = 1e-4 * np.random.default_rng(0).standard_normal(20_000)
    return {
        "speech": media.speech(1.25),
        "a loud tone and faint noise": (0.95 * np.sin(2 * np.pi * 433 * t) + faint).astype(np.float32),
        "silence": np.zeros(20_000, np.float32),
        "noise": np.random.default_rng(1).uniform(-1, 1, 20_000).astype(np.float32),
    }


@pytest.mark.parametrize("name", ["speech", "a loud tone and faint noise", "silence", "noise"])
def test_spectra_are_those_of_the_published_front_end(media, name):
    samples = signals(media)[name]
    found = LogMel(CPU)(torch.from_numpy(samples))
    assert found.shape == ((20_000 - 400) // 160 + 1, 64)
    for start in (0, 7, 26):
        np.testing.assert_allclose(found[start : start + 96], example(samples, start), rtol=0, atol=1e-5)


@pytest.mark.parametrize("last_relu", [True, False])
def test_the_network_equals_layers_written_out(folder, last_relu):
    _, state = folder
    module = network.Vggish(last_relu=last_relu)
    module.load_state_dict(state)
    examples = np.random.default_rng(0).normal(-1, 2, (3, 96, 64)).astype(np.float32)
    with torch.inference_mode():
        found, expected = module(torch.from_numpy(examples)), layers(state, examples, last_relu=last_relu)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found < 0).any() != last_relu


@pytest.mark.parametrize("last_relu", [True, False])
def test_rows_are_those_of_one_example_at_a_time(folder, media, tmp_path, last_relu):
    save_checkpoint(tmp_path, folder[1], {"model_type": "vggish", "last_relu": last_relu})
    rows = VGGISH.load(identify(str(tmp_path)), CPU, "fp32")
    clips = [media.speech(seconds, i) for i, seconds in enumerate((2.2, 0.3))]
    with torch.inference_mode():
        features = rows([torch.from_numpy(clip) for clip in clips])
        examples = [example(clips[0], start) for start in (0, 96, 192)] + [example(clips[1], 0)]
        expected = layers(folder[1], np.stack(examples), last_relu=last_relu)
    assert features.lengths == [3, 1] == [rows.num_frames(len(clip)) for clip in clips]
    torch.testing.assert_close(features.frames, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def film(path, samples: np.ndarray, rate: Fraction, frames: int) -> None:
    """Write sound, and so many pictures at this rate."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("mpeg4", rate=rate), out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 3 * i % 256, np.uint8))
            frame.pts, frame.time_base = i, 1 / rate
            out.mux(video.encode(frame))
        out.mux(video.encode())
        stored = av.AudioFrame.from_ndarray(np.round(samples * 32767).astype(np.int16)[None], "s16", "mono")
        stored.sample_rate, stored.pts, stored.time_base = 16_000, 0, Fraction(1, 16_000)
        out.mux(audio.encode(stored))
        out.mux(audio.encode())


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30_000, 1001), Fraction(60)], ids=float)
def test_each_frame_of_a_video_has_the_example_that_starts_with_it(folder, media, tmp_path, rate):
    samples = media.speech(0.7)
    kept = np.round(samples * 32767).astype(np.float32) / 32768
    count = round(0.8 * rate)  # pictures go on after the sound
    (tmp_path / "media").mkdir()
    film(tmp_path / "media" / "x.mov", samples, rate, count)
    how = {"backbone": str(folder[0]), "dtype": "float32", "precision": "fp32"}
    emi.extract(tmp_path / "media", tmp_path / "x.zarr", fps=None, **how)
    with emi.open_cache(tmp_path / "x.zarr") as store:
        clip = store["x"]
        assert (store.hop_seconds, store.fingerprint["fps"], store.header.modality) == (None, "native", "audio")
    starts = np.arange(count) / float(rate)
    np.testing.assert_allclose(clip.times, np.stack([starts, starts + 1 / float(rate)], 1), atol=1e-5)
    chosen = [0, 1, 2, 7, count // 2, count - 1]
    examples = np.stack([example(kept, round(i * 100 / float(rate))) for i in chosen])
    with torch.inference_mode():
        expected = layers(folder[1], examples, last_relu=False)
    np.testing.assert_allclose(clip.frames[chosen], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_batch_equals_single_clips_and_clips_with_the_same_times(backbone, media):
    clips = [torch.from_numpy(media.speech(seconds, i)) for i, seconds in enumerate((1.3, 0.1, 0.41))]
    starts = [torch.arange(backbone.num_frames(len(clip)), dtype=torch.float64) * 0.04 for clip in clips]
    times = [torch.stack([start, start + 0.04], 1) for start in starts]
    with torch.inference_mode():
        together = backbone(clips)
        alone = torch.cat([backbone([clip]).frames for clip in clips])
        timed = backbone([TimedSound(*pair) for pair in zip(clips, times, strict=True)])
    assert together.lengths == timed.lengths == [33, 3, 11]
    torch.testing.assert_close(together.frames, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(together.frames, timed.frames, rtol=1e-5, atol=1e-5)
    assert together.times is None
    assert torch.equal(timed.times, torch.cat(times))


@pytest.mark.parametrize("samples", [0, 1, 159, 640, 641])
def test_the_shortest_clips_have_the_rows_that_start_in_them(backbone, samples):
    with torch.inference_mode():
        features = backbone([torch.zeros(samples)])
    assert features.lengths == [2 if samples == 641 else 1]
    assert features.frames.isfinite().all()


@pytest.mark.parametrize("block", [1_000, 7_001, 16_000, 100_000])
def test_a_clip_in_blocks_equals_the_whole_clip(backbone, media, block):
    clip = torch.from_numpy(media.speech(1.9))
    times = torch.tensor([[0.0, 0.1], [0.1, 0.9], [0.9, 1.5], [1.5, 2.5], [2.5, 2.6]], dtype=torch.float64)
    blocks = clip.split(block)
    with torch.inference_mode():
        found, whole = torch.cat(list(backbone.in_blocks(blocks))), backbone([clip]).frames
        timed, whole_timed = torch.cat(list(backbone.at_times(blocks, times))), backbone([TimedSound(clip, times)])
        nothing = torch.cat(list(backbone.in_blocks([])))
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(timed, whole_timed.frames, rtol=1e-5, atol=1e-5)
    assert len(nothing) == 1


def test_a_long_video_has_the_rows_of_one_that_is_held(folder, media, tmp_path, monkeypatch):
    (tmp_path / "media").mkdir()
    film(tmp_path / "media" / "x.mov", media.speech(1.9), Fraction(10), 18)
    how = {"backbone": str(folder[0]), "dtype": "float32", "precision": "fp32", "max_seconds": None, "fps": None}
    emi.extract(tmp_path / "media", tmp_path / "held.zarr", **how)
    monkeypatch.setattr("extract.audio.modality.Audio.longest_held", 0.5)
    monkeypatch.setattr("extract.audio.recording.BLOCK_SECONDS", 0.3)
    emi.extract(tmp_path / "media", tmp_path / "blocks.zarr", **how)
    held, blocks = (emi.open_cache(tmp_path / name)["x"] for name in ("held.zarr", "blocks.zarr"))
    assert len(held.times) == 18
    np.testing.assert_array_equal(held.times, blocks.times)
    np.testing.assert_allclose(held.frames, blocks.frames, rtol=1e-5, atol=1e-5)


def test_sound_without_pictures_has_no_native_rows(folder, clips, tmp_path):
    summary = emi.extract(clips / "00001.wav", tmp_path / "x.zarr", backbone=str(folder[0]), fps=None)
    assert [failure.reason for failure in summary.failures] == ["has no video track"]


def test_bfloat16_stays_near_float32(folder, media):
    clip = [torch.from_numpy(media.speech(1.0))]
    with torch.inference_mode():
        low, high = (VGGISH.load(identify(str(folder[0])), CPU, p)(clip).frames for p in ("bf16", "fp32"))
    assert low.dtype == torch.float32
    assert functional.cosine_similarity(low, high).min() > 0.999


def test_the_hop_is_in_the_fingerprint_where_it_is_not_the_usual_one(folder, clips, tmp_path):
    how = {"backbone": str(folder[0]), "precision": "fp32"}
    emi.extract(clips / "00002.wav", tmp_path / "x.zarr", **how)
    assert emi.extract(clips / "00002.wav", tmp_path / "x.zarr", hop=0.96, **how).present == 1
    with pytest.raises(StaleCacheError, match=r"hop \(stored absent, wanted 0\.5\)"):
        emi.extract(clips / "00002.wav", tmp_path / "x.zarr", hop=0.5, **how)
    emi.extract(clips / "00002.wav", tmp_path / "half.zarr", hop=0.5, **how)
    with emi.open_cache(tmp_path / "x.zarr") as usual, emi.open_cache(tmp_path / "half.zarr") as half:
        assert (usual.hop_seconds, len(usual["00002"].frames)) == (0.96, 2)
        assert (half.hop_seconds, len(half["00002"].frames)) == (0.5, 3)
        np.testing.assert_array_equal(usual["00002"].frames[0], half["00002"].frames[0])


@pytest.mark.parametrize(
    ("backbone", "options", "sentence"),
    [
        ("silero", {"hop": 0.1}, r"--hop says when the rows of vggish and mfcc are, and the backbone 'silero' has"),
        ("silero", {"fps": None}, r"--fps native says when the rows of vggish"),
        ("mtcnn", {"hop": 0.1}, r"--hop says when the rows of vggish"),
        ("mfcc", {"hop": 0.001}, r"--hop: at least 0\.01 seconds, got 0\.001"),
        ("mfcc", {"hop": 0.1, "fps": None}, r"--hop 0\.1 and --fps native both say when rows are"),
    ],
)
def test_options_on_rows_are_refused_where_they_mean_nothing(clips, tmp_path, backbone, options, sentence):
    with pytest.raises(ExtractSettingsError, match=sentence):
        emi.extract(clips, tmp_path / "x.zarr", backbone=backbone, **options)


def test_the_full_size_has_the_published_names_and_shapes(monkeypatch):
    monkeypatch.setattr(network, "HIDDEN", 4096)
    with torch.device("meta"):
        module = network.Vggish(last_relu=True)
    assert {name: tuple(weight.shape) for name, weight in module.state_dict().items()} == published(4096)


def test_a_published_state_dict_is_read_as_it_is_and_misfits_are_named(folder, tmp_path):
    state = dict(folder[1])
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vggish", "last_relu": False}))
    torch.save(state, tmp_path / "pytorch_model.bin")
    clip = [torch.full((20_000,), 0.1)]
    with torch.inference_mode():
        both = [VGGISH.load(identify(str(place)), CPU, "fp32")(clip).frames for place in (tmp_path, folder[0])]
    assert torch.equal(*both)
    del state["features.8.bias"]
    state["pproc.pca_means"] = torch.zeros(128)
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"1 missing: features\.8\.bias; 1 unknown: pproc\.pca_means"):
        VGGISH.load(identify(str(tmp_path)), CPU, "fp32")


def test_a_configuration_that_does_not_name_the_last_relu_is_refused(folder, tmp_path):
    save_checkpoint(tmp_path, {"x": torch.zeros(1)}, {"model_type": "vggish"})
    with pytest.raises(BackboneError, match="needs last_relu: true or false"):
        identify(str(tmp_path))
