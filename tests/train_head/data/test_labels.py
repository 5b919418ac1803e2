"""Label CSVs: the exact layout of Hume-Vidmimic2, and every way to get it wrong."""

from pathlib import Path

import numpy as np
import pytest

from train_head.data.label_format import label_format
from train_head.data.labels import read_labels
from train_head.data.predictions import write_predictions
from train_head.errors import LabelError
from train_head.evaluation.scoring import read_pair

HUME = """Filename,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy
0,.333333,.333333,0,0,.333333,0
12,0,0,0,0,.5,0
"""


def write(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_the_hume_layout_is_read_as_it_is(tmp_path):
    labels = read_labels(write(tmp_path, HUME))
    assert labels.ids == ("00000", "00012")
    assert labels.filenames == ("0", "12")
    assert labels.names[3] == "Empathic Pain"
    np.testing.assert_allclose(labels.values[0], [0.333333, 0.333333, 0, 0, 0.333333, 0])


def test_other_names_match_exactly_and_any_column_may_hold_them(tmp_path):
    labels = read_labels(write(tmp_path, "\ufeffJoy, Filename\n0.5,03-01\n1,a/b c\n"))
    assert labels.ids == ("03-01", "a/b c")
    assert labels.names == ("Joy",)


def test_a_scale_of_100_is_divided_away(tmp_path):
    assert read_labels(write(tmp_path, "Filename,Joy\n1,50\n"), label_format(label_scale=100)).values[0, 0] == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Name,Joy\n1,0\n", "no Filename column"),
        ("", "no Filename column"),
        ("Filename,Joy\n", "no rows"),
        ("Filename,Joy,Joy\n1,0,0\n", "'Joy' stands twice"),
        ("Filename,Joy,\n1,0,0\n", "column 3 has no name"),
        ("Filename,Joy\n1,0\n2,0\n00001,1\n", r"line 4: clip '00001' stands in line 2"),
        ("Filename,Joy\n1,inf\n", "line 2, Joy: 'inf' is not a finite number"),
        ("Filename,Joy\n1,high\n", "'high' is not a number"),
        ("Filename,Joy\n1,50\n", "outside 0 to 1; give --label-scale 100"),
        ("Filename,Joy\n1,-0.1\n", "outside 0 to 1"),
        ("Filename,Joy\n1\n", "1 cells, and the header has 2"),
        ("Filename,Joy\n,0.5\n", "the Filename is empty"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_it(tmp_path, text, message):
    with pytest.raises(LabelError, match=message):
        read_labels(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabelError, match="no label file at"):
        read_labels(tmp_path / "none.csv")


def test_predictions_keep_header_order_and_every_bit(tmp_path):
    labels = read_labels(write(tmp_path, HUME))
    values = np.random.default_rng(0).normal(size=labels.values.shape).astype(np.float32)
    write_predictions(tmp_path / "p.csv", labels, labels.names, values)
    assert (tmp_path / "p.csv").read_text().splitlines()[0] == HUME.splitlines()[0]
    np.testing.assert_array_equal(read_labels(tmp_path / "p.csv", check_range=False).values, values)


def test_scoring_matches_clips_by_id_and_columns_by_name(tmp_path):
    labels = write(tmp_path, "Filename,Joy,Sad\n1,0,1\n2,1,0.5\n3,0.5,0\n")
    guess = write(tmp_path, "Filename,Sad,Joy\n00003,0,0.5\n1,1,0\n2,0.5,1\n", "guess.csv")
    predicted, truth = read_pair(guess, labels)
    np.testing.assert_array_equal(predicted, truth.values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Filename,Joy\n1,0\n", "lacks 1 clips of .*first: 00002"),
        ("Filename,Joy\n1,0\n2,0\n9,0\n", "has 1 clips that are not in .*first: 00009"),
        ("Filename,Fun\n1,0\n2,0\n", "has the columns Fun"),
    ],
)
def test_scoring_refuses_predictions_that_do_not_belong(tmp_path, text, message):
    labels = write(tmp_path, "Filename,Joy\n1,0\n2,1\n")
    with pytest.raises(LabelError, match=message):
        read_pair(write(tmp_path, text, "guess.csv"), labels)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Filename,Joy\ncaf\u00e9,0.5\n".encode("latin-1"), "is not in UTF-8"),
        ("Filename,Joy\na,0.5\n".encode("utf-16-be"), "is not in UTF-8"),
        (b'Filename,Joy\n"a,0.5\n' + b"x" * 200_000, "does a quote never end"),
        (b"Filename,Joy\na,0_1\n", "'0_1' is not a number"),
        ("Filename,Joy\na,\u0660.\u0665\n".encode(), "is not a number"),
    ],
)
def test_a_file_that_is_no_label_csv_is_refused_in_one_sentence(tmp_path, content, said):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(LabelError, match=said):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("number", ["0.5", " .5", "5e-1", "+0.5", "5E-1", "0.50"])
def test_every_plain_way_to_write_a_number_is_read(tmp_path, number):
    (tmp_path / "labels.csv").write_text(f"Filename,Joy\na,{number}\n")
    assert read_labels(tmp_path / "labels.csv").values.item() == np.float32(0.5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_not_positive_is_refused(labelled, scale):
    with pytest.raises(LabelError, match="must be above 0"):
        read_labels(labelled / "train.csv", label_format(label_scale=scale))
