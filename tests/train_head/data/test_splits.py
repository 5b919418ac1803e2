"""Splits of several streams, and of labels per frame in windows."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from train_head.data.labels import Labels
from train_head.data.splits import Split, Workspace, joined, sorted_batches, whole_clips
from train_head.data.streams import Stream

LENGTHS = {"audio": [6, 3, 5], "face": [2, 0, 4]}
LABEL_ROWS = [6, 3, 5]


def make_stream(name: str, lengths: list[int], dim: int = 2) -> Stream:
    """Row i of clip c holds (10 * c + i) in every feature."""
    counts = torch.tensor(lengths)
    values = torch.cat([10.0 * c + torch.arange(n) for c, n in enumerate(lengths)])
    return Stream(name, values[:, None].expand(-1, dim).half(), torch.cumsum(counts, 0) - counts, counts, 0.1)


def clip_split() -> Split:
    ids = ("a", "b", "c")
    labels = Labels("labels.csv", ids, ids, ("Joy",), np.float32([[0.1], [0.2], [0.3]]))
    return Split(labels, {n: make_stream(n, x) for n, x in LENGTHS.items()}, torch.from_numpy(labels.values))


def frame_split() -> Split:
    """Label row i of a clip is at row i of its audio, and at row i // 3 of its face."""
    ids = ("a", "b", "c")
    offsets = np.concatenate([[0], np.cumsum(LABEL_ROWS)])
    values = np.float32([[10 * c + i] for c, n in enumerate(LABEL_ROWS) for i in range(n)]) / 100
    values[[1, 2, 3]] = np.nan
    labels = Labels("labels", ids, ids, ("Joy",), values, offsets=offsets)
    at = {
        "audio": torch.cat([torch.arange(n) for n in LABEL_ROWS]),
        "face": torch.cat(
            [
                torch.where(torch.arange(n) // 3 < f, torch.arange(n) // 3, -1)
                for n, f in zip(LABEL_ROWS, LENGTHS["face"], strict=True)
            ]
        ),
    }
    streams = {n: make_stream(n, x) for n, x in LENGTHS.items()}
    return Split(labels, streams, torch.from_numpy(values), whole_clips(labels), at)


def test_a_batch_has_the_rows_of_every_stream_and_a_length_of_0_where_there_are_none():
    batch = clip_split().batch([2, 1])
    assert batch.streams["audio"].lengths.tolist() == [5, 3]
    assert batch.streams["face"].lengths.tolist() == [4, 0]
    assert batch.streams["audio"].frames[:, :, 0].tolist() == [[20, 21, 22, 23, 24], [10, 11, 12, 0, 0]]
    assert batch.streams["face"].frames[:, :, 0].tolist() == [[20, 21, 22, 23], [0, 0, 0, 0]]
    torch.testing.assert_close(batch.targets, torch.tensor([[0.3], [0.2]]))


def test_a_stream_that_no_clip_of_the_batch_has_is_a_row_of_zeros():
    rows = clip_split().batch([1]).streams["face"]
    assert rows.frames.shape == (1, 1, 2)
    assert (rows.frames == 0).all()
    assert rows.lengths.tolist() == [0]


def test_a_batch_says_when_the_rows_of_every_stream_are():
    split = clip_split()
    starts = 0.5 * torch.arange(6.0)
    face = replace(split.streams["face"], hop=None, times=torch.stack([starts, starts + 0.5], dim=1))
    streams = replace(split, streams=split.streams | {"face": face}).batch([2, 0]).streams
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert streams["audio"].seconds[1].tolist() == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert streams["face"].seconds.tolist() == [[1.0, 1.5, 2.0, 2.5], [0.0, 0.5, nan, nan]]
    assert streams["face"].times[0, 3].tolist() == [2.5, 3.0]


def test_the_cost_of_a_sample_is_the_rows_of_all_its_streams():
    split = clip_split()
    assert split.costs.tolist() == [8, 3, 9]
    assert list(sorted_batches(split.costs, 2)) == [[1, 0], [2]]


def test_a_workspace_is_used_again_by_every_stream():
    split, workspace = clip_split(), Workspace()
    for rows in split.batch([0, 2], workspace).streams.values():
        rows.frames.fill_(99.0)
    again, fresh = split.batch([1, 2], workspace), split.batch([1, 2])
    for name, rows in again.streams.items():
        assert torch.equal(rows.frames, fresh.streams[name].frames)


def test_whole_clips_have_their_label_rows_and_the_rows_that_hold_at_them():
    batch = frame_split().batch([0, 1])
    assert batch.targets.shape == (2, 6, 1)
    assert batch.targets[0, :, 0].isnan().tolist() == [False, True, True, True, False, False]
    assert batch.targets[1, 3:].isnan().all()
    assert batch.streams["audio"].at.tolist() == [[0, 1, 2, 3, 4, 5], [0, 1, 2, -1, -1, -1]]
    assert batch.streams["face"].at.tolist() == [[0, 0, 0, 1, 1, 1], [-1] * 6]


@pytest.mark.parametrize(("window", "hop"), [(2, 0), (3, 2), (4, 1), (50, 0)])
def test_a_window_has_the_rows_that_hold_within_it_and_no_others(window, hop):
    whole, split = frame_split(), frame_split().windowed(window, hop)
    batch = split.batch(list(range(len(split.windows))))
    for i, w in enumerate(split.windows):
        first = whole.labels.offsets[w.clip] + w.first
        expected = whole.targets[first : first + w.rows]
        torch.testing.assert_close(batch.targets[i, : w.rows], expected, equal_nan=True)
        for name, rows in batch.streams.items():
            held = whole.at[name][first : first + w.rows]
            values = torch.where(held >= 0, 10.0 * w.clip + held, -1.0)
            found = rows.frames[i, rows.at[i, : w.rows].clamp(min=0), 0]
            assert torch.equal(torch.where(rows.at[i, : w.rows] >= 0, found, -1.0), values)
            assert rows.lengths[i] == (len(held[held >= 0].unique()) if name == "audio" else rows.lengths[i])


def test_windows_without_any_label_are_left_out_where_only_labelled_ones_are_wanted():
    split = frame_split()
    assert [(w.clip, w.first) for w in split.windowed(2, 0).windows][:3] == [(0, 0), (0, 2), (0, 4)]
    assert [(w.clip, w.first) for w in split.windowed(2, 0, labelled=True).windows][:2] == [(0, 0), (0, 4)]


def test_labels_per_clip_have_no_windows():
    split = clip_split()
    assert split.windowed(2, 1) is split


def test_clips_are_taken_with_their_label_rows():
    taken = frame_split().take([2, 0])
    assert taken.labels.ids == ("c", "a")
    batch = taken.batch([0, 1])
    torch.testing.assert_close(batch.targets[0, :5, 0], torch.tensor([0.2, 0.21, 0.22, 0.23, 0.24]))
    assert batch.streams["audio"].frames[:, 0, 0].tolist() == [20, 0]


def test_two_splits_join_on_the_same_rows():
    split = frame_split()
    one, other = split.take([1]), split.take([2, 0])
    both = joined(one, other, split.labels.take([1, 2, 0]))
    expected, found = split.batch([1, 2, 0]), both.batch([0, 1, 2])
    torch.testing.assert_close(found.targets, expected.targets, equal_nan=True)
    for name, rows in found.streams.items():
        assert torch.equal(rows.frames, expected.streams[name].frames)
        assert torch.equal(rows.at, expected.streams[name].at)


def test_a_reach_in_rows_becomes_one_in_label_rows():
    split = frame_split()
    audio_alone = Split(
        split.labels, {"audio": split.streams["audio"]}, split.targets, split.windows, {"audio": split.at["audio"]}
    )
    assert audio_alone.label_reach((4, 2)) == (4, 2)
    before, after = split.label_reach((1, 0))
    assert before >= 3, "a row of the face is three label rows"
    assert after >= 0
    assert split.label_reach(None) is None


def reach_by_hand(held: torch.Tensor, reach: tuple[int, int]) -> tuple[int, int]:
    """The fewest label rows before and after with which every window holds what its inner rows depend on."""
    rows, found = len(held), [0, 0]
    for start in range(rows):
        for stop in range(start + 1, rows + 1):
            inside = held[start:stop][held[start:stop] >= 0]
            for i in range(start, stop):
                if held[i] < 0:
                    continue
                everything = held[held >= 0]
                if start and inside.min() > max(everything.min(), held[i] - reach[0]):
                    found[0] = max(found[0], i - start + 1)
                if stop < rows and inside.max() < min(everything.max(), held[i] + reach[1]):
                    found[1] = max(found[1], stop - i)
    return found[0], found[1]


@pytest.mark.parametrize("reach", [(0, 0), (1, 0), (2, 1), (3, 4)])
@pytest.mark.parametrize(
    "held",
    [
        [0, 1, 2, 3, 4, 5],
        [0, 0, 0, 1, 1, 1, 2, 2],
        [0, 2, 4, 6, 8, 10, 12],
        [0, 1, -1, -1, -1, 2, 3, 4],
        [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6, 7, 8],
        [-1, -1, 0, 0, 5, 6, 6, -1, 9, -1],
        [-1, -1, -1],
    ],
)
def test_a_reach_in_label_rows_covers_the_longest_stay_and_gaps(held, reach):
    """A mean rate would be too short where rows hold unequally long."""
    rows = torch.tensor(held)
    values, offsets = np.zeros((len(held), 1), np.float32), np.array([0, len(held)])
    labels = Labels("labels", ("a",), ("a",), ("Joy",), values, offsets=offsets)
    split = Split(labels, {}, torch.from_numpy(values), whole_clips(labels), {"face": rows})
    assert split.label_reach(reach) == reach_by_hand(rows, reach)


def test_clips_of_two_splits_keep_the_times_of_their_valid_rows():
    valid = torch.tensor([True, False, False, True, True, True, False, True, True])
    stream = replace(make_stream("face", [2, 3, 4]), valid=valid)
    one, other = (stream.take(torch.tensor(clips)).only_valid() for clips in ([0, 1], [2]))
    labels = Labels("labels.csv", ("a",), ("a",), ("Joy",), np.float32([[0.1]]))
    splits = [Split(labels, {"face": part}, torch.from_numpy(labels.values)) for part in (one, other)]
    both = joined(*splits, labels).streams["face"]
    assert torch.equal(both.times, stream.only_valid().times)
    assert both.times[:, 0].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.2, 0.3])
