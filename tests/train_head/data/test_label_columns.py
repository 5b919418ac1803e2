"""Which columns of a label file are targets, and what their cells are: chosen, found, missing, in other spellings."""

from pathlib import Path

import numpy as np
import pytest

from train_head.data.label_format import LabelFormat, label_format
from train_head.data.labels import read_clips, read_labels
from train_head.errors import LabelError
from train_head.evaluation.scoring import read_pair
from train_head.runs.inputs import LabelFiles


def write(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def read(tmp_path: Path, text: str, **form: object):
    return read_labels(write(tmp_path, text), label_format(**form))


def test_text_columns_are_ignored_by_name(tmp_path):
    labels = read(tmp_path, "Filename,Joy,transcript,Sad,sex\n1,0,I am,0.5,f\n2,1,3,1,m\n3,1,so,1,f\n")
    assert (labels.names, labels.ignored) == (("Joy", "Sad"), ("transcript", "sex"))


def test_the_targets_that_are_named_are_taken_in_their_order(tmp_path):
    labels = read(tmp_path, "Filename,Joy,Condition,Sad,start\n1,0,3,0.5,12.5\n2,1,4,1,80\n", targets="Sad, Joy")
    assert (labels.names, labels.ignored) == (("Sad", "Joy"), ("Condition", "start"))
    np.testing.assert_array_equal(labels.values, [[0.5, 0], [1, 1]])
    assert read(tmp_path, 'Filename,"Joy, loud"\n1,0\n', targets='"Joy, loud"').names == ("Joy, loud",)


@pytest.mark.parametrize(
    ("text", "form", "message"),
    [
        ("Filename,Joy\n1,.5\n2,0,5x\n", {}, "line 3: 3 cells"),
        ("Filename,Joy\n1,.5\n2,.5x\n3,.1\n", {}, "line 3, Joy: '.5x' is not a number"),
        ("Filename,Joy,Sad\n1,.5,.1\n2,high,.1\n", {"targets": "Joy"}, "line 3, Joy: 'high' is not a number"),
        ("Filename,Joy,a\n1,high,b\n", {}, "line 2, Joy: 'high' is not a number.*--targets"),
        ("Filename,Joy\n1,.5\n", {"targets": "Joi"}, "unknown column 'Joi'; did you mean 'Joy'"),
        ("Filename,Joy\n1,.5\n", {"targets": "Filename"}, "Filename names the clips"),
        ("Filename,Joy\n1,.5\n", {"targets": "Joy,Joy"}, "named twice"),
        ("Filename,Joy\n1,.5\n", {"targets": ""}, "expected names of columns"),
        ("Filename,Joy\n1,.5\n", {"targets": "Joy", "group_by": "Joy"}, "as a target and as --group-by"),
        ("Filename,Joy\n1,.5\n", {"rater": "who"}, "--rater: unknown column 'who'"),
        (",Filename,Joy\n0,1,.5\n", {}, "column 1 has no name; an index that pandas wrote"),
        ("Unnamed: 0,Filename,Joy\n0,1,.5\n", {}, "column 'Unnamed: 0' had no name.*index=False.*--targets"),
        ("Filename,Joy,Age\n1,.5,31\n", {}, r"Age: 31 is outside 0 to 1; name the columns .* --targets, or give"),
        ("Filename,Joy\n1,inf\n", {}, "is not a finite number"),
    ],
)
def test_what_cannot_be_a_target_is_one_sentence(tmp_path, text, form, message):
    with pytest.raises(LabelError, match=message):
        read(tmp_path, text, **form)


def test_a_nameless_column_is_no_matter_where_the_targets_are_named(tmp_path):
    labels = read(tmp_path, ",Filename,Joy,\n0,1,.5,x\n", targets=["Joy"])
    assert (labels.names, labels.ignored) == (("Joy",), ("column 1", "column 4"))


@pytest.mark.parametrize("cell", ["", " ", "NaN", "nan", "NA", "N/A", "n/a", "null", "None", "#N/A", "<NA>", "-nan"])
def test_a_missing_cell_is_a_missing_label(tmp_path, cell):
    labels = read(tmp_path, f"Filename,Joy,Sad\n1,0.5,{cell}\n2,{cell},1\n")
    np.testing.assert_array_equal(labels.values, [[0.5, np.nan], [np.nan, 1]])


def test_a_missing_prediction_is_an_error(tmp_path):
    with pytest.raises(LabelError, match="line 3, Joy: '' is no prediction"):
        read_labels(write(tmp_path, "Filename,Joy\n1,7\n2,\n"), check_range=False)


def test_training_clips_without_any_label_are_left_out_and_counted(tmp_path):
    train = write(tmp_path, "Filename,Joy,Sad\n1,0.5,\n2,,\n3,,1\n")
    valid = write(tmp_path, "Sad,Filename,notes,Joy\n,4,x,\n1,5,y,\n", "valid.csv")
    labels = LabelFiles.named(train, valid).read()
    assert (labels["train"].ids, labels["train"].unlabelled) == (("00001", "00003"), 1)
    assert (labels["valid"].ids, labels["valid"].names) == (("00004", "00005"), ("Joy", "Sad"))
    assert labels["valid"].ignored == ("notes",)


def test_a_target_without_any_training_label_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"has no label in the column 'Sad'.*--targets"):
        LabelFiles.named(write(tmp_path, "Filename,Joy,Sad\n1,0.5,\n2,1,nan\n")).read()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Filename\n9\n", ()),
        ("Filename,sex\n9,f\n", ()),
        ("Filename,Sad,Joy\n9,,\n", ()),
        ("Filename,Sad,Joy,sex\n9,1,,f\n", ("Joy", "Sad")),
    ],
)
def test_a_test_split_may_lack_its_labels(tmp_path, text, names):
    train = write(tmp_path, "Filename,Joy,Sad\n1,0.5,0\n")
    labels = LabelFiles.named(train, test=write(tmp_path, text, "test.csv")).read()["test"]
    assert (labels.ids, labels.names, labels.values.shape) == (("00009",), names, (1, len(names)))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_that_lacks_one_target_is_refused(tmp_path, split):
    files = {
        "train": write(tmp_path, "Filename,Joy,Sad\n1,0.5,0\n"),
        split: write(tmp_path, "Filename,Joy\n2,1\n", "s"),
    }
    with pytest.raises(LabelError, match=r"has no column 'Sad' among Joy; .*labels\.csv has the targets Joy, Sad"):
        LabelFiles(files=files).read()


@pytest.mark.parametrize(
    "text",
    ["Filename;Joy\n1;0,5\n2;,25\n3;1\n", "Filename\tJoy\n1\t0,5\n2\t2,5e-1\n3\t1\n", "Filename;Joy\n1;.5\n2;.25\n3;1"],
)
def test_decimal_commas_are_read_where_cells_are_separated_otherwise(tmp_path, text):
    np.testing.assert_array_equal(read(tmp_path, text).values.ravel(), [0.5, 0.25, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('Filename,Joy\n1,"0,5"\n', "line 2, Joy: '0,5' has a comma, which separates the cells.*write decimal points"),
        ("Filename;Joy;Sad\n1;0,5;1\n2;1;0.5\n", "'0,5' has a decimal comma, and .*line 3, Sad: '0.5' a decimal point"),
        ("Filename;Joy\n1;1,000\n2;0\n", "may have a decimal comma or stand for thousands"),
        ("Filename;Joy\n1;1,000.5\n2;0\n", "'1,000.5' is not a number"),
    ],
)
def test_an_unclear_comma_is_an_error_that_says_what_to_do(tmp_path, text, message):
    with pytest.raises(LabelError, match=message):
        read(tmp_path, text)


def test_a_minus_sign_of_typesetting_is_a_minus(tmp_path):
    assert read(tmp_path, "Filename,V\n1,\u22120.5\n", label_range="-1,1").values.item() == -0.5


def test_clips_and_groups_are_read_without_looking_at_values(tmp_path):
    path = write(tmp_path, "Filename,who,x\n1,a,?\n2,b,!\n1,a,\n")
    assert read_clips(path, "who", repeated=True).groups == ("a", "b")
    with pytest.raises(LabelError, match="clip '1' stands in line 2 already"):
        read_clips(path)


def test_predictions_are_scored_beside_text_columns_and_with_named_targets(tmp_path):
    labels = write(tmp_path, "Filename,age,Joy,sex,Sad\n1,20,0,f,1\n2,30,1,m,0.5\n3,40,0.5,f,0\n")
    guess = write(tmp_path, "note,Sad,Filename,Joy\nx,0,3,0.5\ny,1,1,0\nz,0.5,2,1\n", "guess.csv")
    with pytest.raises(LabelError, match="age: 20 is outside"):
        read_pair(guess, labels)
    predicted, truth = read_pair(guess, labels, LabelFormat(targets=("Joy", "Sad")))
    np.testing.assert_array_equal(predicted, truth.values)
    predicted, truth = read_pair(guess, labels, LabelFormat(targets=("Sad",)))
    assert (predicted.shape, truth.names) == ((3, 1), ("Sad",))
