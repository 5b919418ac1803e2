"""Augmentation one clip at a time in NumPy, and the promises that each kind keeps."""

import numpy as np
import pytest
import torch

from train_head.data.names import UNNAMED
from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.errors import TrainSettingsError
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings

LENGTHS = [1, 40, 7, 33, 2, 18]
KINDS = {
    "time masks": AugmentSettings(time_masks=3, time_mask_frames=5),
    "frame dropout": AugmentSettings(frame_dropout=0.4),
    "noise": AugmentSettings(noise=0.5),
    "mixup": AugmentSettings(mixup=0.4),
    "all": AugmentSettings(time_masks=2, time_mask_frames=9, frame_dropout=0.2, noise=0.1, mixup=1.0),
}
EVERY_KIND = pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS.keys())


def make_batch(lengths: list[int] = LENGTHS, dim: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Time-major in memory, as training batches are; features far from 0."""
    generator = torch.Generator().manual_seed(0)
    clips = [3.0 + torch.randn(n, dim, generator=generator) for n in lengths]
    frames = torch.nn.utils.rnn.pad_sequence(clips).transpose(0, 1)
    return frames, torch.tensor(lengths), torch.rand(len(lengths), 2, generator=generator)


def augmented(settings: AugmentSettings, seed: int = 0, batch=None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    frames, lengths, targets = batch or make_batch()
    given = Batch({UNNAMED: Rows(frames, lengths)}, targets)
    changed = augment_batch(given, settings, torch.Generator().manual_seed(seed))
    rows = changed.streams[UNNAMED]
    return rows.frames, rows.lengths, changed.targets


def test_without_any_augmentation_the_same_objects_come_back():
    batch = make_batch()
    assert all(a is b for a, b in zip(augmented(AugmentSettings(), batch=batch), batch, strict=True))


@EVERY_KIND
def test_the_given_batch_is_left_as_it_is(settings):
    batch = make_batch()
    augmented(settings, batch=batch)
    assert all(torch.equal(a, b) for a, b in zip(batch, make_batch(), strict=True))


@EVERY_KIND
def test_the_generator_alone_decides(settings):
    torch.manual_seed(1)
    first = augmented(settings, seed=3)
    torch.manual_seed(2)
    again, other = augmented(settings, seed=3), augmented(settings, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, other, strict=True))


@EVERY_KIND
@pytest.mark.parametrize("seed", range(5))
def test_the_result_is_a_batch_like_the_given_one(settings, seed):
    before, lengths_before, targets_before = make_batch()
    frames, lengths, targets = augmented(settings, seed)
    assert frames.dtype == torch.float32
    assert frames.transpose(0, 1).is_contiguous()
    assert lengths.dtype == torch.int64
    assert (lengths >= 1).all()
    assert (lengths <= lengths_before).all()
    assert frames.shape[1] == (lengths.max() if settings.frame_dropout else before.shape[1])
    assert targets.shape == targets_before.shape
    assert torch.isfinite(frames).all()
    for clip, n in zip(frames, lengths.tolist(), strict=True):
        assert clip[:n].all()
        assert not clip[n:].any()


@EVERY_KIND
def test_a_batch_of_one_frame_passes(settings):
    frames, lengths, _ = augmented(settings, batch=make_batch([1]))
    assert frames.shape == (1, 1, 4)
    assert lengths.tolist() == [1]


@EVERY_KIND
def test_the_layout_in_memory_does_not_change_the_numbers(settings):
    frames, lengths, targets = make_batch()
    expected = augmented(settings)
    found = augmented(settings, batch=(frames.contiguous(), lengths, targets))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("seed", range(5))
def test_masked_spans_hold_the_mean_of_their_clip_and_are_short(seed):
    before, lengths, _ = make_batch()
    frames, _, _ = augmented(AugmentSettings(time_masks=1, time_mask_frames=5), seed)
    for old, new, n in zip(before.numpy(), frames.numpy(), lengths.tolist(), strict=True):
        changed = np.flatnonzero((old != new).any(1))
        assert len(changed) <= min(5, n // 2)
        assert len(changed) == 0 or np.ptp(changed) == len(changed) - 1
        np.testing.assert_allclose(new[changed], np.tile(old[:n].mean(0), (len(changed), 1)), rtol=1e-5)


def test_masks_of_every_length_occur_anywhere_in_a_clip():
    before, _, _ = make_batch([20] * 400)
    frames, _, _ = augmented(AugmentSettings(time_masks=1, time_mask_frames=3), batch=make_batch([20] * 400))
    masked = (before != frames).any(2).numpy()
    assert masked.any(0).all()
    assert np.bincount(masked.sum(1)).min() > 70


def test_dropped_frames_leave_the_others_in_order():
    before, lengths_before, targets = make_batch()
    frames, lengths, same = augmented(AugmentSettings(frame_dropout=0.5))
    assert torch.equal(same, targets)
    for old, new, m, n in zip(before, frames, lengths_before.tolist(), lengths.tolist(), strict=True):
        places = [next(i for i in range(m) if torch.equal(old[i], row)) for row in new[:n]]
        assert places == sorted(set(places))


def test_the_share_of_dropped_frames_is_the_chance():
    _, lengths, _ = augmented(AugmentSettings(frame_dropout=0.3), batch=make_batch([500] * 20))
    assert lengths.sum().item() == pytest.approx(0.7 * 500 * 20, rel=0.03)


def test_however_many_frames_are_dropped_one_stays():
    _, lengths, _ = augmented(AugmentSettings(frame_dropout=0.999))
    assert (lengths >= 1).all()


def test_noise_is_measured_in_the_spread_of_each_feature():
    frames, lengths, targets = make_batch([400, 300, 500])
    frames = frames * torch.tensor([1.0, 10.0, 0.1, 0.0])
    noisy, _, _ = augmented(AugmentSettings(noise=0.2), batch=(frames, lengths, targets))
    valid = torch.arange(500) < lengths[:, None]
    added, clean = (noisy - frames)[valid].numpy(), frames[valid].numpy()
    np.testing.assert_allclose(added.std(0), 0.2 * clean.std(0), rtol=0.1, atol=1e-7)
    assert np.abs(added.mean(0) / np.maximum(clean.std(0), 1e-9)).max() < 0.03


def test_mixup_mixes_each_clip_with_another_one_stretched_to_its_length():
    before, lengths, targets = (x.numpy() for x in make_batch())
    mixed, same, labels = (x.numpy() for x in augmented(AugmentSettings(mixup=0.5), seed=2))
    np.testing.assert_array_equal(same, lengths)
    partners = []
    for i, n in enumerate(lengths):
        found = [(j, share) for j in range(len(lengths)) for share in shares(targets, labels, i, j)]
        fitting = [
            j
            for j, share in found
            if np.allclose(mixed[i, :n], share * before[i, :n] + (1 - share) * stretch(before[j, : lengths[j]], n))
        ]
        assert len(fitting) == 1
        partners += fitting
    assert sorted(partners) == list(range(len(lengths)))
    assert all(i != j for i, j in enumerate(partners))


def shares(targets: np.ndarray, labels: np.ndarray, i: int, j: int) -> list[float]:
    """The share of clip i in its mixed labels, were j its partner: empty where that is no share of at least a half."""
    if i == j:
        return []
    share = float((labels[i, 0] - targets[j, 0]) / (targets[i, 0] - targets[j, 0]))
    agrees = np.allclose(labels[i], share * targets[i] + (1 - share) * targets[j], atol=1e-4)
    return [share] if agrees and 0.5 <= share <= 1.0001 else []


def stretch(clip: np.ndarray, length: int) -> np.ndarray:
    """The frame at the middle of each of `length` equal parts of a clip."""
    middle = (np.arange(length) + 0.5) / length * len(clip)
    return clip[np.floor(middle + 1e-9).astype(int)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_masks": -1}, "time_masks must be finite and not negative"),
        ({"time_masks": 1.5}, "time_masks must be a whole number"),
        ({"time_masks": True}, "time_masks must be a whole number"),
        ({"time_mask_frames": 0}, "time_mask_frames must be at least 1"),
        ({"frame_dropout": 1.0}, "frame_dropout must lie below 1"),
        ({"frame_dropout": "0.1"}, "frame_dropout must be a number"),
        ({"noise": float("nan")}, "noise must be finite and not negative"),
        ({"mixup": float("inf")}, "mixup must be finite and not negative"),
    ],
)
def test_values_out_of_range_are_refused_by_name(options, message):
    with pytest.raises(TrainSettingsError, match=message):
        AugmentSettings(**options)


def test_whole_numbers_are_accepted_for_fractions():
    assert AugmentSettings(noise=1) == AugmentSettings(noise=1.0)
