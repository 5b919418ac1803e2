"""Groups from a column or from file names, splits that share none, and folds by them."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import emi
from train_head.data.groups import check_disjoint, official_folds, speaker_folds
from train_head.data.label_format import label_format
from train_head.data.labels import match_groups, read_clips, read_labels
from train_head.errors import LabelError

TEXT = (
    "Filename,Joy,Speaker,Sad\n03-01/Actor_01/a,0,anna,1\n03-01/Actor_02/b,1, ben ,0.5\n03-02/Actor_01/c,0.5,anna,0\n"
)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    (tmp_path / "labels.csv").write_text(TEXT)
    return tmp_path / "labels.csv"


def test_a_column_gives_the_groups_and_is_no_target(labels):
    read = read_labels(labels, label_format(group_by="Speaker"))
    assert read.groups == ("anna", "ben", "anna")
    assert read.names == ("Joy", "Sad")
    np.testing.assert_array_equal(read.values, [[0, 1], [1, 0.5], [0.5, 0]])
    assert read.take([1, 0]).groups == ("ben", "anna")
    assert read_clips(labels, "Speaker").groups == read.groups


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [(r"Actor_(\d+)", ("01", "02", "01")), (r"^\d\d-\d\d", ("03-01", "03-01", "03-02")), (r"Actor_0?(.)", "121")],
)
def test_a_regular_expression_finds_the_group_in_the_filename(tmp_path, pattern, expected):
    (tmp_path / "l.csv").write_text(TEXT.replace(",Speaker", "").replace(",anna", "").replace(", ben ", ""))
    assert read_labels(tmp_path / "l.csv", label_format(group_by=pattern)).groups == tuple(expected)
    names = [line.split(",")[0] for line in TEXT.splitlines()[1:]]
    assert match_groups(names, pattern, "these clips") == tuple(expected)


def test_without_a_wish_there_are_no_groups(tmp_path):
    (tmp_path / "l.csv").write_text("Filename,Joy\n1,0\n2,1\n")
    read = read_labels(tmp_path / "l.csv")
    assert read.groups is None
    assert read.take([1]).groups is None


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("Actor_02", r"no column of these clips, .* finds no group in 7 of its 8 Filenames \(first: 0, 1, 2, 3, 4\)"),
        ("(", "neither a column of these clips nor a regular expression"),
        ("(.)(.)", "has 2 groups, expected one or none"),
        ("x*", "finds no group in 8 of its 8"),
    ],
)
def test_a_pattern_that_finds_no_group_is_refused_with_the_first_names(by, message):
    with pytest.raises(LabelError, match=message):
        match_groups([*map(str, range(7)), "Actor_02"], by, "these clips")


def test_an_empty_group_is_an_error_with_its_line(labels):
    labels.write_text(TEXT.replace(" ben ", " "))
    with pytest.raises(LabelError, match="line 3, Speaker: the group is empty"):
        read_labels(labels, label_format(group_by="Speaker"))


def test_splits_that_share_speakers_are_refused_by_name():
    check_disjoint(["a", "b"], ["c", "d"])
    with pytest.raises(LabelError, match=r"6 of the 7 validation groups .*first: s0, s1, s2, s3, s4\)"):
        check_disjoint([f"s{i}" for i in range(6)] * 2, [f"s{i}" for i in range(7)])


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_share_no_speaker_cover_every_clip_once_and_are_of_one_size(folds):
    groups = [f"s{i % 20}" for i in range(400)]
    split = speaker_folds(groups, folds, seed=0)
    assert len(split) == folds
    assert sorted(row for _, valid in split for row in valid) == list(range(400))
    for train, valid in split:
        assert sorted(train + valid) == list(range(400))
        check_disjoint([groups[i] for i in train], [groups[i] for i in valid])
        assert len(valid) == 400 // folds


def test_folds_are_balanced_by_clips_where_speakers_differ_in_how_many_they_have():
    sizes = np.random.default_rng(0).integers(1, 60, size=40)
    groups = [f"s{i}" for i, size in enumerate(sizes) for _ in range(size)]
    per_fold = [len(valid) for _, valid in speaker_folds(groups, 5, seed=3)]
    assert max(per_fold) - min(per_fold) <= max(Counter(groups).values()) // 4


def test_the_seed_decides_which_speakers_meet():
    groups = [f"s{i % 20}" for i in range(100)]
    assert speaker_folds(groups, 5, seed=1) == speaker_folds(groups, 5, seed=1)
    assert speaker_folds(groups, 5, seed=1) != speaker_folds(groups, 5, seed=2)


@pytest.mark.parametrize(("folds", "message"), [(4, "4 folds need as many groups, and there are 3"), (1, "at least 2")])
def test_more_folds_than_speakers_are_refused(folds, message):
    with pytest.raises(LabelError, match=message):
        speaker_folds(["a", "b", "c", "a"], folds, seed=0)


def test_official_folds_are_fifths_in_the_order_of_names_and_the_validation_clips():
    names = [f"{i:03d}" for i in np.random.default_rng(0).permutation(341)]
    folds = official_folds(names, None, valid=71)
    assert [len(valid) for _, valid in folds] == [68, 68, 68, 68, 69, 71]
    for number in range(5):
        assert (
            sorted(names[i] for i in folds[number][1])
            == [f"{i:03d}" for i in range(68 * number, 341)][: len(folds[number][1])]
        )
    assert folds[5] == (list(range(341)), list(range(341, 412)))
    for train, valid in folds:
        assert sorted(train + valid) == list(range(412))
        assert train == sorted(train)


def test_the_border_of_an_official_fold_moves_to_the_next_video():
    names = ["a", "b_left", "b_right", "b-1", "c", "d", "e", "e_left", "f", "g"]
    groups = ["a", "b", "b", "b-1", "c", "d", "e", "e", "f", "g"]
    parts = [[names[i] for i in valid] for _, valid in official_folds(names, groups, valid=1)[:5]]
    # borders of fifths are at 2, 4, 6 and 8; that at 2 lies between b_left and b_right
    assert parts == [["a", "b_left", "b_right"], ["b-1"], ["c", "d"], ["e", "e_left"], ["f", "g"]]
    backwards = names[::-1]
    again = official_folds(backwards, groups[::-1], valid=1)[:5]
    assert [sorted(backwards[i] for i in valid) for _, valid in again] == [sorted(part) for part in parts]


def test_too_few_videos_for_official_folds_are_refused():
    with pytest.raises(LabelError, match=r"cut into 5 folds, and its 4 clips are too few; give --folds N"):
        official_folds(["a", "b", "c", "d"], None, valid=3)
    with pytest.raises(LabelError, match=r"its 2 groups of clips \(a, b\) are too few"):
        official_folds([f"{g}{i}" for g in "ab" for i in range(5)], ["a"] * 5 + ["b"] * 5, valid=3)


def test_an_empty_group_in_the_test_file_is_an_error_that_names_its_line(labelled, labelled_cache, tmp_path):
    for name in ("train", "valid", "test"):
        with (labelled / f"{'valid' if name == 'test' else name}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        speakers = ["speaker", *(f"{name}{i % 3}" for i in range(len(rows) - 1))]
        speakers[3] = "" if name == "test" else speakers[3]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([*row, speaker] for row, speaker in zip(rows, speakers, strict=True))
    files = (labelled_cache, tmp_path / "train.csv", tmp_path / "valid.csv", tmp_path / "run")
    with pytest.raises(LabelError, match="line 4, speaker: the group is empty"):
        emi.train_head(*files, test=tmp_path / "test.csv", group_by="speaker", head="mean", epochs=2)
