"""Windows over label rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_head.data.windows import Window, join_windows, kept_rows, make_windows
from train_head.errors import TrainSettingsError


def test_the_last_window_ends_with_the_clip():
    found = make_windows([700], 300, 200)
    assert [(w.first, w.rows) for w in found] == [(0, 300), (200, 300), (400, 300)]
    assert [(w.first, w.rows) for w in make_windows([650], 300, 200)] == [(0, 300), (200, 300), (350, 300)]
    assert [(w.first, w.rows) for w in make_windows([650], 300)] == [(0, 300), (300, 300), (350, 300)]


def test_short_clips_and_whole_clips_are_one_window_and_empty_ones_none():
    assert make_windows([120, 0, 5], 300, 200) == [Window(0, 0, 120, 120), Window(2, 0, 5, 5)]
    assert make_windows([700], 0) == [Window(0, 0, 700, 700)]


@given(
    lengths=st.lists(st.integers(0, 60), max_size=4),
    window=st.integers(0, 20),
    hop=st.integers(0, 20),
)
def test_every_row_is_in_some_window_unless_the_hop_leaves_gaps(lengths, window, hop):
    windows = make_windows(lengths, window, hop)
    covered = [np.zeros(n, int) for n in lengths]
    for w in windows:
        covered[w.clip][w.first : w.first + w.rows] += 1
        assert w.rows == (min(window, lengths[w.clip]) or w.of)
    if hop <= window:
        assert all((count > 0).all() for count in covered)


@given(data=st.data(), lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4), window=st.integers(0, 20))
def test_windows_of_a_signal_join_to_the_signal(data, lengths, window):
    hop = data.draw(st.integers(1, max(1, window)))
    rng = np.random.default_rng(0)
    clips = [rng.random((n, 2)).astype(np.float32) for n in lengths]
    windows = make_windows(lengths, window, hop)
    parts = iter([clips[w.clip][w.first : w.first + w.rows] for w in windows])
    joined = join_windows(windows, parts, [slice(0, w.rows) for w in windows], lengths)
    np.testing.assert_allclose(joined, np.concatenate(clips), rtol=1e-6)


def test_overlaps_are_averaged():
    windows = make_windows([6], 4, 2)
    parts = iter([np.full((4, 1), 1.0), np.full((4, 1), 3.0)])
    joined = join_windows(windows, parts, [slice(0, 4)] * 2, [6])
    assert joined.ravel().tolist() == [1, 1, 2, 2, 3, 3]


def test_valid_overlaps_drop_what_did_not_see_all_that_it_depends_on():
    first, inner, last = make_windows([16], 8, 4)
    assert kept_rows(first, (2, 1), "valid") == slice(0, 7)
    assert kept_rows(inner, (2, 1), "valid") == slice(2, 7)
    assert kept_rows(last, (2, 1), "valid") == slice(2, 8)
    assert kept_rows(inner, (2, 1), "mean") == slice(0, 8)
    assert kept_rows(Window(0, 0, 5, 5), (2, 1), "valid") == slice(0, 5)


def test_a_reach_longer_than_the_window_keeps_nothing_of_it():
    first, inner, last = make_windows([16], 8, 4)
    assert [kept_rows(w, (63, 63), "valid") for w in (first, inner, last)] == [slice(0, 0), slice(8, 8), slice(8, 8)]


def test_a_head_that_sees_the_whole_clip_has_no_valid_overlap():
    with pytest.raises(TrainSettingsError, match="depends on the whole clip"):
        kept_rows(Window(0, 0, 5, 9), None, "valid")


def test_rows_that_no_window_keeps_are_an_error_that_names_a_hop():
    windows = make_windows([16], 8, 8)
    kept = [kept_rows(w, (2, 1), "valid") for w in windows]
    with pytest.raises(TrainSettingsError, match=r"3 label rows are in no window.*make the hop 7 rows or less"):
        join_windows(windows, iter([np.ones((8, 1))] * 2), kept, [16])
