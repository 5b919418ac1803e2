"""Which rows of predictions belong to which rows of labels per frame."""

import numpy as np
import pytest

from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.data.matching import align, cut_notes, predicted_rows
from train_head.data.predictions import write_predictions
from train_head.errors import LabelError
from train_head.evaluation.scoring import read_pair

VA = LabelFormat(range=(-1, 1))


def folder(place, rows, names="valence,arousal", first=0):
    """A folder with a file per clip of so many rows; row i of every clip says i / 1000 and -i / 1000."""
    place.mkdir()
    for clip, count in rows.items():
        swapped = names.startswith("arousal")
        values = [(i / 1000, -i / 1000)[:: -1 if swapped else 1] for i in range(first, count)]
        (place / f"{clip}.txt").write_text("\n".join([names, *(f"{a},{b}" for a, b in values), ""]))
    return place


def table(place, rows, clock, step=1.0):
    """A CSV of the same, with some of the rows of each clip."""
    lines = [f"{clip},{i * step:g},{i / 1000},{-i / 1000}" for clip, kept in rows.items() for i in kept]
    place.write_text("\n".join([f"Filename,{clock},valence,arousal", *lines, ""]))
    return place


def test_files_of_any_tool_are_read_whatever_the_order_of_their_columns(tmp_path):
    labels = folder(tmp_path / "labels", {"a": 5, "b": 3})
    guess = folder(tmp_path / "guess", {"b": 3, "a": 5}, names="arousal, valence")
    predicted, truth = read_pair(guess, labels, VA)
    np.testing.assert_array_equal(predicted, truth.values)
    (guess / "b.txt").write_text((labels / "b.txt").read_text())
    np.testing.assert_array_equal(read_pair(guess, labels, VA)[0], truth.values)


@pytest.mark.parametrize(("predicted", "rows"), [(99, 99), (97, 97), (103, 100)])
def test_a_clip_with_a_few_rows_more_or_less_is_cut_to_the_shorter_and_said(tmp_path, predicted, rows):
    labels = folder(tmp_path / "labels", {"a": 100, "b": 20})
    values, truth = read_pair(folder(tmp_path / "guess", {"a": predicted, "b": 20}), labels, VA)
    assert truth.lengths.tolist() == [rows, 20]
    np.testing.assert_array_equal(values, truth.values)
    assert cut_notes(truth) == (
        f"1 clip cut to the rows that labels and predictions have in common: a: {predicted} rows for 100 of labels",
    )


@pytest.mark.parametrize("predicted", [96, 104, 0])
def test_a_clip_with_many_rows_more_or_less_is_named(tmp_path, predicted):
    labels = folder(tmp_path / "labels", {"a": 100, "b": 20})
    with pytest.raises(LabelError, match=rf"1 clip \(first: a: {predicted} rows for 100 of labels\)"):
        read_pair(folder(tmp_path / "guess", {"a": predicted, "b": 20}), labels, VA)


def test_of_a_long_clip_one_row_in_a_hundred_may_be_missing(tmp_path):
    labels = folder(tmp_path / "labels", {"a": 1000})
    assert read_pair(folder(tmp_path / "guess", {"a": 990}), labels, VA)[1].lengths.tolist() == [990]
    with pytest.raises(LabelError, match="a: 989 rows for 1000 of labels"):
        read_pair(folder(tmp_path / "less", {"a": 989}), labels, VA)


def test_clips_that_only_one_side_has_are_named(tmp_path):
    labels = folder(tmp_path / "labels", {"a": 5, "b": 5})
    with pytest.raises(LabelError, match=r"lacks 1 clips of .*first: b"):
        read_pair(folder(tmp_path / "less", {"a": 5}), labels, VA)
    with pytest.raises(LabelError, match=r"has 1 clips that are not in .*first: c"):
        read_pair(folder(tmp_path / "more", {"a": 5, "b": 5, "c": 5}), labels, VA)


@pytest.mark.parametrize(("clock", "step"), [("time", 0.04), ("frame", 1)])
def test_rows_of_tables_are_matched_by_their_moments(tmp_path, clock, step):
    labels = table(tmp_path / "labels.csv", {"b": range(2, 9), "a": range(5)}, clock, step)
    guess = table(tmp_path / "guess.csv", {"a": range(9), "b": [2, 3, 5, 6, 7, 8]}, clock, step)
    values, truth = read_pair(guess, labels, VA)
    assert truth.ids == ("b", "a")
    assert truth.lengths.tolist() == [6, 5]
    np.testing.assert_array_equal(values, truth.values)
    assert cut_notes(truth)[0].endswith("b: 1 of 7 rows of labels not predicted")
    with pytest.raises(LabelError, match="b: 5 of 7 rows of labels not predicted"):
        read_pair(table(tmp_path / "few.csv", {"a": range(5), "b": [2, 3]}, clock, step), labels, VA)


def test_times_need_only_three_digits(tmp_path):
    labels = table(tmp_path / "labels.csv", {"a": range(50)}, "time", 1 / 30)
    guess = table(tmp_path / "guess.csv", {"a": range(50)}, "time", 1 / 30)
    rounded = [line.split(",") for line in guess.read_text().splitlines()]
    guess.write_text("\n".join(",".join([n, f"{float(t):.3f}" if t != "time" else t, *v]) for n, t, *v in rounded))
    values, truth = read_pair(guess, labels, VA)
    assert len(truth.values) == 50
    np.testing.assert_array_equal(values, truth.values)


def test_numbers_of_frames_are_those_of_the_files_lines(tmp_path):
    labels = table(tmp_path / "labels.csv", {"a": [3, 4, 7], "b": [0, 1]}, "frame")
    values, truth = read_pair(folder(tmp_path / "guess", {"a": 20, "b": 3}), labels, VA)
    np.testing.assert_array_equal(values, truth.values)
    whole = folder(tmp_path / "labels", {"a": 5})
    values, truth = read_pair(table(tmp_path / "guess.csv", {"a": [0, 1, 3, 4]}, "frame"), whole, VA)
    np.testing.assert_array_equal(values, truth.values)
    assert truth.moments.tolist() == [0, 1, 3, 4]


def test_rows_without_a_label_need_no_prediction(tmp_path):
    labels = folder(tmp_path / "labels", {"a": 50})
    lines = (labels / "a.txt").read_text().splitlines()
    lines[11:31] = ["-5,-5"] * 20
    (labels / "a.txt").write_text("\n".join(lines))
    guess = table(tmp_path / "guess.csv", {"a": [*range(10), *range(30, 50)]}, "frame")
    values, truth = read_pair(guess, labels, VA)
    np.testing.assert_array_equal(values, truth.values)
    assert (len(truth.values), truth.cut) == (30, ())


def test_times_and_frames_are_not_matched_nor_frames_and_clips(tmp_path):
    labels = folder(tmp_path / "labels", {"a": 5})
    with pytest.raises(LabelError, match=r"guess\.csv has the times of its rows, and .* numbers of frames"):
        read_pair(table(tmp_path / "guess.csv", {"a": range(5)}, "time"), labels, VA)
    (tmp_path / "clips.csv").write_text("Filename,valence,arousal\na,0.5,0.5\n")
    with pytest.raises(LabelError, match=r"labels has rows per frame, and .*clips\.csv one row per clip"):
        read_pair(tmp_path / "clips.csv", labels, VA)
    with pytest.raises(LabelError, match=r"labels has rows per frame, and .*clips\.csv one row per clip"):
        read_pair(labels, tmp_path / "clips.csv", VA)


def test_predictions_of_other_rows_are_no_predictions_of_these(tmp_path):
    truth = read_frame_labels(folder(tmp_path / "labels", {"a": 5}), VA)
    guess = read_frame_labels(folder(tmp_path / "guess", {"a": 4}), VA, check_range=False)
    with pytest.raises(LabelError, match=r"lacks 1 of the rows of .*first: of a"):
        align(guess, truth)
    assert len(align(guess, predicted_rows(truth, guess))) == 4


def test_the_mark_of_a_missing_label_is_a_label_where_the_range_includes_it_and_a_number_in_predictions(tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("valence,arousal\n-5,1\n0,2\n")
    wide = read_frame_labels(tmp_path / "labels", LabelFormat(range=(-10, 10)))
    assert wide.values.tolist() == [[-5, 1], [0, 2]]
    narrow = read_frame_labels(tmp_path / "labels", LabelFormat(range=(-4, 4)))
    assert np.isnan(narrow.values).tolist() == [[True, True], [False, False]]
    guess = read_frame_labels(tmp_path / "labels", check_range=False)
    assert guess.values.tolist() == [[-5, 1], [0, 2]]


def test_names_with_commas_are_quoted_in_tables_of_predictions(tmp_path):
    place = tmp_path / "labels.csv"
    place.write_text('Filename,time,"valence, self",b\n"a, 1",0,0.5,0.25\n"a, 1",1,0.5,0.25\n')
    labels = read_frame_labels(place)
    write_predictions(tmp_path / "guess.csv", labels, labels.names, labels.values)
    assert (tmp_path / "guess.csv").read_text() == place.read_text()
