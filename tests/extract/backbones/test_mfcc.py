"""MFCC against torchaudio on each clip alone."""

import numpy as np
import pytest
import torch
import torchaudio

import emi
from extract.audio.timed_sound import TimedSound
from extract.backbones.mfcc.encoder import MfccBackbone
from train_head.data.labels import read_labels

CPU = torch.device("cpu")


def alone(samples: torch.Tensor) -> torch.Tensor:
    """(rows, 39): one row per 10 ms, from spectra that start with the row; zeros follow the end."""
    spectra = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "center": False}
    transform = torchaudio.transforms.MFCC(16_000, 13, log_mels=True, melkwargs=spectra)
    rows = -(-max(1, len(samples)) // 160)
    whole = -(-(160 * (rows - 1) + 400) // 160) * 160
    first = transform(torch.nn.functional.pad(samples, (0, whole - len(samples))))
    second = torchaudio.functional.compute_deltas(first)
    return torch.cat([first, second, torchaudio.functional.compute_deltas(second)]).T[:rows]


def sounds(media):
    return [torch.from_numpy(media.speech(seconds, i)) for i, seconds in enumerate((1.23, 0.4, 0.011))]


def test_rows_are_those_of_torchaudio(media):
    clips = [*sounds(media), torch.zeros(0)]
    features = MfccBackbone(0.01, CPU)(clips)
    assert features.lengths == [123, 40, 2, 1]
    torch.testing.assert_close(features.frames, torch.cat([alone(clip) for clip in clips]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("hop", "starts"), [(0.04, range(0, 123, 4)), (0.5, [0, 50, 100]), (0.025, None)])
def test_rows_at_another_hop_are_some_of_these(media, hop, starts):
    backbone, clip = MfccBackbone(hop, CPU), sounds(media)[0]
    rows = [round(100 * hop * i) for i in range(50)] if starts is None else list(starts)
    assert backbone.num_frames(len(clip)) == len(rows)
    assert torch.equal(backbone([clip]).frames, MfccBackbone(0.01, CPU)([clip]).frames[rows])


def test_rows_at_given_times_may_lie_behind_the_sound(media):
    clip = sounds(media)[1]
    times = torch.tensor([[0.0, 0.1], [0.333, 0.5], [0.8, 0.9]], dtype=torch.float64)
    features = MfccBackbone(0.01, CPU)([TimedSound(clip, times)])
    assert features.lengths == [3]
    assert torch.equal(features.times, times)
    padded = torch.nn.functional.pad(clip, (0, 6_560))
    torch.testing.assert_close(features.frames, alone(padded)[[0, 33, 80]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", [50, 3_000, 100_000])
@pytest.mark.parametrize("clip", range(3))
def test_a_clip_in_blocks_equals_the_whole_clip(media, clip, block):
    backbone, samples = MfccBackbone(0.03, CPU), sounds(media)[clip]
    found = torch.cat(list(backbone.in_blocks(samples.split(block))))
    torch.testing.assert_close(found, backbone([samples]).frames, rtol=1e-5, atol=1e-5)
    times = torch.tensor([[0.0, 0.1], [0.01, 2.0], [2.0, 2.1]], dtype=torch.float64)
    timed = torch.cat(list(backbone.at_times(samples.split(block), times)))
    torch.testing.assert_close(timed, backbone([TimedSound(samples, times)]).frames, rtol=1e-5, atol=1e-5)


def test_a_clip_without_sound_has_one_row():
    backbone = MfccBackbone(0.01, CPU)
    assert torch.equal(torch.cat(list(backbone.in_blocks([]))), backbone([torch.zeros(0)]).frames)


def test_long_clips_have_the_rows_of_clips_that_are_held(clips, tmp_path, monkeypatch):
    how = {"backbone": "mfcc", "dtype": "float32", "max_seconds": None}
    emi.extract(clips, tmp_path / "held.zarr", **how)
    monkeypatch.setattr("extract.audio.modality.Audio.longest_held", 0.5)
    monkeypatch.setattr("extract.audio.recording.BLOCK_SECONDS", 0.2)
    assert emi.extract(clips, tmp_path / "blocks.zarr", **how).written == 10
    with emi.open_cache(tmp_path / "held.zarr") as held, emi.open_cache(tmp_path / "blocks.zarr") as blocks:
        assert (held.hop_seconds, held.header.dim, held.header.modality) == (0.01, 39, "audio")
        for name in held.ids:
            np.testing.assert_allclose(held[name].frames, blocks[name].frames, rtol=1e-4, atol=1e-4)


def test_a_head_on_another_hop_predicts_with_that_hop(labelled, tmp_path):
    emi.extract(labelled / "audio", tmp_path / "m.zarr", backbone="mfcc", hop=0.04)
    run = tmp_path / "run"
    emi.train_head(tmp_path / "m.zarr", labelled / "train.csv", labelled / "valid.csv", run, epochs=1, head="mean")
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    values = {record["Filename"]: list(record.values())[1:] for record in emi.load(run).predict(labelled / "audio")}
    np.testing.assert_allclose([values[clip] for clip in expected.ids], expected.values, atol=1e-5)
