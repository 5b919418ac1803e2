"""Which row of a stream holds at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train_head.data.streams import Stream
from train_head.errors import TrainSettingsError


def make_stream(lengths, hop=None, times=None, valid=None):
    lengths = torch.tensor(lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    return Stream("audio", torch.zeros(int(lengths.sum()), 3), starts, lengths, hop, times, valid)


@given(hop=st.sampled_from([0.02, 0.04, 0.032, 1 / 6, 1 / 29.97]), rows=st.integers(1, 5000))
def test_at_the_hop_of_the_stream_every_row_has_its_own(hop, rows):
    fps = 1 / hop
    found = make_stream([rows], hop).rows_at(0, np.arange(rows + 3) / fps)
    assert found.tolist() == [*range(rows), -1, -1, -1]


def test_a_row_holds_to_the_start_of_the_next():
    stream = make_stream([2, 3], hop=0.5)
    assert stream.rows_at(1, np.array([0, 0.49, 0.5, 1.2, 1.499, 1.5, -0.1])).tolist() == [0, 0, 1, 2, 2, -1, -1]


def test_a_row_with_times_holds_from_its_start_to_its_end():
    times = torch.tensor([[9, 9], [0.5, 1.0], [1.0, 1.25], [2.0, 3.0]])
    stream = make_stream([1, 3], times=times)
    moments = np.array([0.0, 0.5, 0.99, 1.0, 1.25, 1.9, 2.0, 2.9, 3.0])
    assert stream.rows_at(1, moments).tolist() == [-1, 0, 0, 1, -1, -1, 2, 2, -1]


def test_times_of_frames_are_found_again_though_they_are_float32():
    starts = np.arange(20000) / 29.97
    times = torch.from_numpy(np.stack([starts, starts + 1 / 29.97], axis=1).astype(np.float32))
    assert make_stream([20000], times=times).rows_at(0, starts).tolist() == list(range(20000))


@pytest.mark.parametrize("hop", [0.02, 0.032, 0.04, 1 / 29.97])
def test_float32_times_on_the_start_of_a_row_find_it_after_four_hours(hop):
    """Such a time is up to half a millisecond early; the row before would be 20 to 40 times as far away."""
    rows = np.arange(round(4 * 3600 / hop), round(4 * 3600 / hop) + 3000)
    starts = (rows * hop).astype(np.float32).astype(np.float64)
    assert (starts < rows * hop).mean() > 0.3
    stream = make_stream([int(rows[-1]) + 1], hop)
    np.testing.assert_array_equal(stream.rows_at(0, starts), rows)
    np.testing.assert_array_equal(stream.rows_at(0, rows * hop - hop / 4), rows - 1)


def test_a_stream_without_hop_and_times_is_refused():
    with pytest.raises(TrainSettingsError, match=r"neither a hop nor times.*--hop"):
        make_stream([3]).rows_at(0, np.zeros(1))


def test_chunks_are_the_valid_rows_of_each_sample():
    stream = make_stream([2, 1], hop=1.0, valid=torch.tensor([True, False, True]))
    assert [len(chunk) for chunk in stream.chunks()] == [1, 1]
    assert [len(chunk) for chunk in stream.take(torch.tensor([1])).chunks()] == [1]
