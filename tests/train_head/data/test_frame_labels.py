"""Labels per frame, from folders and tables, and predictions in the same layout."""

import numpy as np
import pytest

from train_head.data.frame_labels import are_frame_labels, read_frame_labels
from train_head.data.label_format import LabelFormat
from train_head.data.predictions import write_predictions
from train_head.errors import LabelError

VA = LabelFormat(range=(-1, 1))


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "annotations"
    place.mkdir()
    (place / "1-30-640x480.txt").write_text("valence,arousal\n0.5,-0.25\n-5,0.5\n-5,-5\n0,1\n")
    (place / "2_left.txt").write_text("\ufeffvalence,arousal\r\n.125,-1\r\n\r\n", encoding="utf-8")
    (place / "._2_left.txt").write_bytes(b"\0\1")
    return place


def test_a_folder_is_read_clip_by_clip_and_a_row_with_one_missing_value_counts_for_neither(folder):
    labels = read_frame_labels(folder, VA)
    assert labels.ids == ("1-30-640x480", "2_left")
    assert labels.names == ("valence", "arousal")
    assert labels.offsets.tolist() == [0, 4, 5]
    nan = np.nan
    np.testing.assert_array_equal(
        labels.values, np.float32([[0.5, -0.25], [nan, nan], [nan, nan], [0, 1], [0.125, -1]])
    )
    np.testing.assert_allclose(labels.unit_values[0], [0.75, 0.375])


def test_clips_are_taken_with_their_rows(folder):
    labels = read_frame_labels(folder, VA).take([1, 0])
    assert labels.ids == ("2_left", "1-30-640x480")
    assert labels.offsets.tolist() == [0, 1, 5]
    assert labels.values[0].tolist() == [0.125, -1]
    assert labels.take([0]).values.tolist() == [[0.125, -1]]


def test_a_clip_without_any_label_is_left_out_of_the_labelled_ones(folder):
    (folder / "3.txt").write_text("valence,arousal\n-5,-5\n-5,0\n")
    labels = read_frame_labels(folder, VA)
    assert len(labels) == 3
    assert labels.labelled().ids == ("1-30-640x480", "2_left")
    assert labels.labelled().unlabelled == 1


def test_groups_are_found_in_the_names(folder):
    (folder / "2_right.txt").write_text("valence,arousal\n0,0\n")
    labels = read_frame_labels(folder, LabelFormat(range=(-1, 1), group_by=r"^(\d+)"))
    assert labels.groups == ("1", "2", "2")


def test_targets_are_chosen_by_name(folder):
    labels = read_frame_labels(folder, LabelFormat(range=(-1, 1), targets=("arousal",)))
    assert labels.names == ("arousal",)
    assert labels.values[1] == np.float32(0.5), "the other column's mark does not matter where it is not predicted"
    with pytest.raises(LabelError, match=r"line 1: unknown target 'arousel'; did you mean 'arousal'"):
        read_frame_labels(folder, LabelFormat(range=(-1, 1), targets=("arousel",)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("valence,arousal\n0,0\n0.1\n", r"3\.txt, line 3: expected 2 numbers.*got '0\.1'"),
        ("valence,arousal\n0,x\n", r"3\.txt, line 2: expected 2 numbers.*got '0,x'"),
        ("valence,arousal\n0,nan\n", r"3\.txt, line 2: expected 2 numbers"),
        ("valence,dominance\n0,0\n", r"3\.txt, line 1: the columns are valence, dominance, and those of"),
        ("", r"3\.txt is empty; expected the names of the targets"),
        ("valence,arousal\n0,0\n0,2\n", r"3, frame 1: arousal is 2, outside -1 to 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(folder, text, message):
    (folder / "3.txt").write_text(text)
    with pytest.raises(LabelError, match=message):
        read_frame_labels(folder, VA)


def test_the_hint_names_the_range(folder):
    with pytest.raises(LabelError, match=r"outside 0 to 1; give --label-range -1,1"):
        read_frame_labels(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(LabelError, match=r"holds no \.txt file"):
        read_frame_labels(tmp_path)


@pytest.fixture
def table(tmp_path):
    place = tmp_path / "labels.csv"
    place.write_text("Filename,time,valence,speaker\nb,0,0.5,x\na,0,0.25,y\nb,0.04,,x\na,0.5,1,y\n")
    return place


def test_a_table_gives_each_clip_its_rows_in_order_with_their_times(table):
    labels = read_frame_labels(table, LabelFormat(group_by="speaker"))
    assert labels.ids == ("b", "a")
    assert labels.offsets.tolist() == [0, 2, 4]
    np.testing.assert_array_equal(labels.values[:, 0], np.float32([0.5, np.nan, 0.25, 1]))
    assert labels.moments.tolist() == [0, 0.04, 0, 0.5]
    assert (labels.clock, labels.groups) == ("time", ("x", "y"))


def test_a_table_is_known_by_its_clock_and_by_clips_with_several_rows(table, tmp_path):
    assert are_frame_labels(table)
    once = tmp_path / "once.csv"
    once.write_text("Filename,time,valence\na,0,0.5\nb,0,0.25\n")
    assert not are_frame_labels(once)
    assert not are_frame_labels(table, LabelFormat(rater="speaker"))
    assert are_frame_labels(tmp_path)
    assert not are_frame_labels(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Filename,time,v\na,0.5,0\na,0.5,0\n", r"line 3: time 0\.5 of 'a' does not come after"),
        ("Filename,frame,v\na,0,0\na,1.5,0\n", r"line 3: a frame is a whole number from 0, got 1\.5"),
        ("Filename,frame,v\na,-1,0\na,1,0\n", r"line 2: a frame is a whole number from 0, got -1"),
        ("Filename,time\na,0\na,1\n", "no column of numbers beside Filename and time"),
        ("Filename,v\na,0\n", "no column `time` or `frame`"),
        (
            "Filename,time,v,who\na,0,0,x\na,1,0,y\n",
            r"line 3, who: clip 'a' is of group 'y' here, and of 'x' before",
        ),
    ],
)
def test_what_is_wrong_in_a_table_is_named(tmp_path, text, message):
    place = tmp_path / "labels.csv"
    place.write_text(text)
    with pytest.raises(LabelError, match=message):
        read_frame_labels(place, LabelFormat(group_by="who") if "who" in text else None)


def test_raters_are_refused(folder):
    with pytest.raises(LabelError, match="average the raters"):
        read_frame_labels(folder, LabelFormat(rater="who"))


def test_predictions_come_in_the_layout_of_the_labels_and_are_read_back_exactly(folder, table, tmp_path):
    for place, form in ((folder, VA), (table, LabelFormat())):
        labels = read_frame_labels(place, form)
        values = np.random.default_rng(0).random((len(labels.values), len(labels.names))).astype(np.float32)
        out = tmp_path / "predictions"
        for _ in range(2):  # what stood there is replaced
            write_predictions(out, labels, labels.names, values)
        found = read_frame_labels(out, form, check_range=False)
        np.testing.assert_array_equal(found.values, values)
        assert (found.ids, found.offsets.tolist()) == (labels.ids, labels.offsets.tolist())
        assert place == folder or found.moments.tolist() == labels.moments.tolist()
        if out.is_dir():
            assert sorted(p.name for p in out.iterdir()) == ["1-30-640x480.txt", "2_left.txt"]
            (out / "1-30-640x480.txt").unlink()
            (out / "2_left.txt").unlink()
            out.rmdir()
        assert not list(tmp_path.glob("*.tmp"))
