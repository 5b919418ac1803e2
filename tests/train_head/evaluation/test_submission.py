"""The challenge's file: what is written passes the check, and the check finds each way to be turned down."""

from pathlib import Path

import numpy as np
import pytest

from train_head.data.label_format import label_format
from train_head.data.labels import read_labels
from train_head.errors import LabelError
from train_head.evaluation.submission import check_submission, has_values, write_submission

HEADER = "Filename,Joy,Empathic Pain"
LABELS = f"{HEADER}\n2,0,1\n10,.5,.5\n1,1,0\n"
GOOD = f"{HEADER}\n2,0,1\n10,.5,.5\n1,1,0\n"


def write(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(tmp_path: Path, text: str, reference: str = LABELS) -> list[str]:
    return check_submission(write(tmp_path, text, "p.csv"), write(tmp_path, reference))


@pytest.mark.parametrize("text", [GOOD, f"{HEADER}\n1,1,0\n2,0,1\n10,.5,.5\n"])
def test_the_order_of_the_labels_and_that_of_the_numbers_are_both_right(tmp_path, text):
    assert problems(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("Joy", "joy"), ["the header is 'Filename,joy,Empathic Pain', expected 'Filename,Joy,"]),
        (GOOD.replace(HEADER, "Filename,Empathic Pain,Joy"), ["the header is 'Filename,Empathic Pain,Joy'"]),
        (GOOD.replace(HEADER, "Filename, Joy,Empathic Pain"), ["the header is 'Filename, Joy,Empathic Pain'"]),
        (GOOD.replace("Filename", "File"), ["the header is 'File,Joy"]),
        (GOOD.replace("10,.5,.5\n", ""), ["1 clips are missing (first: 10)"]),
        (GOOD + "77,0,0\n78,0,0\n", ["2 clips are not asked for (first: 77, 78)"]),
        (GOOD + "1,1,0\n", ["1 clips stand twice or more (first: 00001)"]),
        (GOOD.replace("\n1,", "\n00001,"), ["1 Filenames are written otherwise (first: '00001' for '1')"]),
        (f"{HEADER}\n10,0,1\n2,.5,.5\n1,1,0\n", ["2 rows are out of order (first: 10 where 2 belongs, 2 where 10"]),
        (
            GOOD.replace("\n1,1,0", "\n1,nan,-inf"),
            ["2 values are not finite (first: 1 Joy: nan, 1 Empathic Pain: -inf"],
        ),
        (GOOD.replace("\n1,1,0", "\n1,1.01,-.1"), ["2 values are outside 0 to 1 (first: 1 Joy: 1.01, 1 Empathic"]),
        (GOOD.replace("\n1,1,0", "\n1,,high"), ["2 values are no numbers (first: 1 Joy: '', 1 Empathic Pain: 'high')"]),
        (GOOD.replace("\n1,1,0", "\n1,1"), ["1 rows do not have the header's 3 cells (first: line 4)"]),
        (
            f"{HEADER}\n10,2,0\n2,0,0\n5,0,0\n",
            ["1 clips are missing", "1 clips are not asked", "2 rows are out of order", "1 values are outside"],
        ),
    ],
)
def test_each_way_to_be_turned_down_is_one_sentence_with_the_first(tmp_path, text, expected):
    found = problems(tmp_path, text)
    assert len(found) == len(expected), found
    for sentence, start in zip(found, expected, strict=True):
        assert sentence.startswith(start)


def test_a_count_comes_with_the_first_five(tmp_path):
    rows = "".join(f"{i},0,0\n" for i in range(100))
    assert problems(tmp_path, GOOD, f"{HEADER}\n{rows}")[0] == "97 clips are missing (first: 0, 3, 4, 5, 6)"


def test_names_that_are_no_numbers_keep_the_order_of_the_labels(tmp_path):
    labels = f"{HEADER}\nb/2,0,0\na/1,0,0\n"
    assert problems(tmp_path, labels, labels) == []
    assert problems(tmp_path, f"{HEADER}\na/1,0,0\nb/2,0,0\n", labels)[0].startswith("2 rows are out of order")


def test_a_template_may_lack_values_or_targets(tmp_path):
    assert problems(tmp_path, GOOD, f"{HEADER}\n2,,\n10,,\n1,,\n") == []
    assert problems(tmp_path, GOOD, "Filename\n2\n10\n1\n") == []
    assert [has_values(write(tmp_path, text)) for text in (LABELS, "Filename,Joy\n1,\n", "Filename\n1\n")] == [
        *(True, False, False)
    ]


def test_columns_that_are_no_targets_belong_to_no_submission(tmp_path):
    labels = write(tmp_path, "Filename,Speaker,Joy,Age\n1,7,0,30\n")
    sent = write(tmp_path, "Filename,Joy\n1,0\n", "p.csv")
    assert check_submission(sent, labels, label_format(targets="Joy")) == []
    assert check_submission(sent, labels, label_format(group_by="Speaker"))[0].startswith("the header is")
    assert check_submission(sent, write(tmp_path, "Filename,Speaker,Joy\n1,anna,0\n")) == []


def test_a_submission_is_a_plain_csv_whatever_the_labels_are(tmp_path):
    labels = write(tmp_path, "filename;Joy\n1;0,5\n")
    assert check_submission(write(tmp_path, "Filename,Joy\n1,0.5\n", "p.csv"), labels) == []
    assert check_submission(write(tmp_path, "Filename;Joy\n1;0,5\n", "p.csv"), labels)[0].startswith("the header is")


def test_a_submission_of_another_range_is_clipped_to_it_and_checked_for_it(tmp_path):
    labels, sent = write(tmp_path, "Filename,V\n1,-1\n2,1\n"), tmp_path / "p.csv"
    assert write_submission(sent, ["00001", "00002"], ["V"], [[-1.5], [0.5]], bounds=(-1.0, 1.0)) == 1
    assert sent.read_text() == "Filename,V\n1,-1\n2,0.5\n"
    assert check_submission(sent, labels, label_format(label_range="-1,1")) == []
    assert check_submission(sent, labels) == ["1 values are outside 0 to 1 (first: 1 V: -1)"]


def test_a_template_that_is_none_is_an_error(tmp_path):
    good = write(tmp_path, GOOD, "p.csv")
    for text, message in (("Name\n1\n", "has no Filename"), ("Filename\n", "no rows")):
        with pytest.raises(LabelError, match=message):
            check_submission(good, write(tmp_path, text))
    with pytest.raises(LabelError, match="there is no file at"):
        check_submission(tmp_path / "none.csv", good)


def test_what_is_written_is_sorted_by_number_unpadded_and_clipped(tmp_path):
    values = np.array([[0.25, 1.5], [-0.5, 1 / 3], [1.0, 0.0]], np.float32)
    clipped = write_submission(tmp_path / "s.csv", ["00010", "00002", "123456"], ["Joy", "Empathic Pain"], values)
    assert clipped == 2
    expected = f"{HEADER}\n2,0,0.333333343\n10,0.25,1\n123456,1,0\n"
    assert (tmp_path / "s.csv").read_text() == expected
    assert read_labels(tmp_path / "s.csv").values[0, 1] == values[1, 1]


def test_what_is_written_passes_the_check(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 2))
    for template in (None, write(tmp_path, LABELS)):
        write_submission(tmp_path / "p.csv", ["00001", "00002", "00010"], ["Joy", "Empathic Pain"], values, template)
        assert check_submission(tmp_path / "p.csv", write(tmp_path, LABELS)) == []


def test_a_template_gives_rows_order_spelling_and_columns(tmp_path):
    template = write(tmp_path, "Filename,Empathic Pain,Joy\nb,,\n007,,\na,,\n", "t.csv")
    write_submission(tmp_path / "s.csv", ["00007", "a", "b"], ["Joy", "Empathic Pain"], np.eye(3)[:, :2], template)
    assert (tmp_path / "s.csv").read_text() == "Filename,Empathic Pain,Joy\nb,0,0\n007,0,1\na,1,0\n"


def test_names_that_are_no_numbers_are_sorted_as_text(tmp_path):
    write_submission(tmp_path / "s.csv", ["b", "00001", "a"], ["Joy"], [[1], [0], [0.5]])
    assert (tmp_path / "s.csv").read_text() == "Filename,Joy\n00001,0\na,0.5\nb,1\n"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Filename\n1\n2\n3\n", r"t\.csv: 1 clips were not predicted \(first: 3\)$"),
        ("Filename\n1\n", r"1 predicted clips are not in it \(first: 00002\)"),
        ("Filename\n1\n3\n", "1 clips were not predicted .*; 1 predicted clips are not in it"),
        ("Filename\n1\n2\n00001\n", "1 clips stand twice"),
        ("Filename,Fun\n1,\n2,\n", "has the targets Fun, and the run predicts Joy"),
    ],
)
def test_a_template_of_other_clips_or_targets_is_refused(tmp_path, template, message):
    with pytest.raises(LabelError, match=message):
        write_submission(
            tmp_path / "s.csv", ["00001", "00002"], ["Joy"], [[0], [1]], write(tmp_path, template, "t.csv")
        )
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        (["1", "2"], [[0], [np.nan]], r"1 predictions are not finite \(first: 2 Joy\)"),
        (["1", "00001"], [[0], [1]], "1 clips were predicted twice"),
        (["1"], [[0], [1]], r"expected \(1, 1\)"),
    ],
)
def test_predictions_that_cannot_be_sent_are_refused(tmp_path, ids, values, message):
    with pytest.raises(ValueError, match=message):
        write_submission(tmp_path / "s.csv", ids, ["Joy"], values)
