"""Files with a row per frame, named by its image: templates, submissions, and predictions of any program."""

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from emi.cli import app
from train_head.data.frame_labels import read_frame_labels
from train_head.data.image_rows import has_image_rows, read_image_rows
from train_head.data.label_format import LabelFormat
from train_head.errors import LabelError
from train_head.evaluation.frame_submission import check_frame_submission, write_frame_submission
from train_head.evaluation.scoring import read_pair

HEADER = "image_location,valence,arousal"


def folder(place, rows, names="valence,arousal"):
    """Predictions of clips with so many rows; row i says i / 10 and -i / 100."""
    place.mkdir()
    for clip, count in rows.items():
        lines = [
            ",".join(f"{v:g}" for v in sorted((i / 10, 0 - i / 100), reverse=names[0] == "v")) for i in range(count)
        ]
        (place / f"{clip}.txt").write_text("\n".join([names, *lines, ""]))
    return read_frame_labels(place, check_range=False)


def template(place, rows, header=HEADER):
    text = [f"{clip}/{number:05d}.jpg" + ",0" * header.count(",") for clip, number in rows]
    place.write_text("\n".join([header, *text, ""]))
    return place


def test_the_rows_are_those_of_the_template_in_its_order_clipped_to_the_range(tmp_path):
    guess = folder(tmp_path / "guess", {"a": 3, "b_left": 15, "c": 4})
    wanted = template(tmp_path / "t.txt", [("b_left", 15), ("b_left", 2), ("a", 1), ("a", 3)])
    assert write_frame_submission(tmp_path / "p.txt", guess, wanted) == 1
    assert (tmp_path / "p.txt").read_text().splitlines() == [
        HEADER,
        "b_left/00015.jpg,1,-0.140000001",
        "b_left/00002.jpg,0.100000001,-0.00999999978",
        "a/00001.jpg,0,0",
        "a/00003.jpg,0.200000003,-0.0199999996",
    ]
    assert check_frame_submission(tmp_path / "p.txt", wanted) == []


def test_a_run_without_predictions_for_the_template_says_what_it_has_and_what_to_do(tmp_path):
    (tmp_path / "run").mkdir()
    folder(tmp_path / "run" / "predictions_valid", {"a": 2})
    wanted = template(tmp_path / "t.txt", [("a", 1)])
    given = ["submission", str(tmp_path / "run"), "--template", str(wanted), "--out", str(tmp_path / "p.txt")]
    error = CliRunner().invoke(app, given).exception
    assert isinstance(error, LabelError)
    assert re.search(
        r"run is a run without predictions_test; it has predictions_valid, .*`emi predict MEDIA", str(error)
    )
    (tmp_path / "run" / "predictions_valid").rename(tmp_path / "run" / "predictions_test")
    assert CliRunner().invoke(app, given).exit_code == 0


def test_columns_are_in_the_order_of_the_template(tmp_path):
    guess = folder(tmp_path / "guess", {"a": 2}, names="arousal,valence")
    write_frame_submission(tmp_path / "p.txt", guess, template(tmp_path / "t.txt", [("a", 2)]))
    assert (tmp_path / "p.txt").read_text() == f"{HEADER}\na/00002.jpg,0.100000001,-0.00999999978\n"
    bare = template(tmp_path / "bare.txt", [("a", 2)], header="image_location")
    write_frame_submission(tmp_path / "q.txt", guess, bare)
    assert (tmp_path / "q.txt").read_text().splitlines()[0] == "image_location,arousal,valence"


def test_a_few_rows_beyond_the_last_prediction_repeat_it_and_many_are_an_error(tmp_path):
    guess = folder(tmp_path / "guess", {"a": 5})
    wanted = template(tmp_path / "t.txt", [("a", n) for n in (5, 6, 8)])
    write_frame_submission(tmp_path / "p.txt", guess, wanted)
    values = {line.split(",", 1)[1] for line in (tmp_path / "p.txt").read_text().splitlines()[1:]}
    assert values == {"0.400000006,-0.0399999991"}
    with pytest.raises(LabelError, match=r"1 clips lack rows of .*first: a: 5 rows for frames up to 9"):
        write_frame_submission(tmp_path / "p.txt", guess, template(tmp_path / "t.txt", [("a", 9)]))


def test_clips_and_targets_that_were_not_predicted_are_named(tmp_path):
    guess = folder(tmp_path / "guess", {"a": 5})
    with pytest.raises(
        LabelError, match=r"guess: 1 clips of .*t\.txt were not predicted \(first: b\); predict them with"
    ):
        write_frame_submission(tmp_path / "p.txt", guess, template(tmp_path / "t.txt", [("a", 1), ("b", 1)]))
    other = template(tmp_path / "t.txt", [("a", 1)], header="image_location,valence,dominance")
    with pytest.raises(LabelError, match=r"has the targets valence, dominance, and .*guess valence, arousal"):
        write_frame_submission(tmp_path / "p.txt", guess, other)
    assert not (tmp_path / "p.txt").exists()


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (lambda rows: rows[:-1], ["1 rows are missing (first: b/00001.jpg)"]),
        (lambda rows: [*rows, "b/00002.jpg,0,0"], ["1 rows are not asked for (first: b/00002.jpg)"]),
        (lambda rows: [*rows, rows[-1]], ["1 rows stand twice or more (first: b/00001.jpg)"]),
        (
            lambda rows: [rows[1], rows[0], rows[2]],
            [
                "2 rows are out of order (first: a/00002.jpg where a/00001.jpg belongs, "
                "a/00001.jpg where a/00002.jpg belongs)"
            ],
        ),
        (
            lambda rows: [*rows[:2], "b/00001.jpg,1.5,0"],
            ["1 values are outside -1 to 1 (first: b/00001.jpg valence: 1.5)"],
        ),
        (lambda rows: [*rows[:2], "b/00001.jpg,x,nan"], ["no numbers (first: b/00001.jpg valence: 'x')", "not finite"]),
        (lambda rows: [*rows[:2], "b/00001.jpg,0"], ["1 rows do not have 2 values (first: b/00001.jpg)"]),
    ],
)
def test_every_problem_of_a_submission_is_listed(tmp_path, change, problems):
    wanted = template(tmp_path / "t.txt", [("a", 1), ("a", 2), ("b", 1)])
    lines = change(wanted.read_text().splitlines()[1:])
    (tmp_path / "p.txt").write_text("\n".join([HEADER, *lines, ""]))
    found = check_frame_submission(tmp_path / "p.txt", wanted)
    assert len(found) == len(problems)
    assert all(text in said for text, said in zip(problems, found, strict=True))


def test_another_header_is_a_problem_and_no_header_an_error(tmp_path):
    wanted = template(tmp_path / "t.txt", [("a", 1)])
    other = template(tmp_path / "p.txt", [("a", 1)], header="image_location,arousal,valence")
    assert check_frame_submission(other, wanted) == ["the header is 'arousal,valence', expected 'valence,arousal'"]
    (tmp_path / "p.txt").write_text("a/00001.jpg,0,0\n")
    with pytest.raises(LabelError, match=r"p\.txt has no column image_location; expected the header"):
        check_frame_submission(tmp_path / "p.txt", wanted)
    with pytest.raises(LabelError, match="there is no file at"):
        check_frame_submission(tmp_path / "none.txt", wanted)


def test_a_template_gives_every_frame_up_to_the_last_of_its_clips(tmp_path):
    labels = read_image_rows(template(tmp_path / "t.txt", [("b", 2), ("a", 3), ("a", 1)])).clips()
    assert (labels.ids, labels.lengths.tolist(), labels.names) == (("b", "a"), [2, 3], ())
    assert labels.is_folder
    (tmp_path / "t.txt").write_text(f"{HEADER}\na.jpg,0,0\n")
    with pytest.raises(LabelError, match=r"line 2: expected the image of a frame, such as .*, got 'a\.jpg'"):
        read_image_rows(tmp_path / "t.txt").clips()


def test_a_submission_of_any_program_is_scored_against_annotations(tmp_path):
    (tmp_path / "labels").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for clip in ("b", "a"):
        values = rng.uniform(-1, 1, (30, 2)).round(3)
        (tmp_path / "labels" / f"{clip}.txt").write_text(
            "\n".join(["valence,arousal", "-5,-5", *(f"{v},{a}" for v, a in values[1:]), ""])
        )
        rows += [f"{clip}/{i + 1:05d}.jpg,{v},{a}" for i, (v, a) in enumerate(values)]
    rng.shuffle(rows)
    (tmp_path / "p.txt").write_text("\n".join([HEADER, *rows, ""]))
    assert has_image_rows(tmp_path / "p.txt")
    predicted, truth = read_pair(tmp_path / "p.txt", tmp_path / "labels", LabelFormat(range=(-1, 1)))
    known = ~np.isnan(truth.values)
    assert known.sum() == 2 * 2 * 29
    np.testing.assert_array_equal(predicted[known], truth.values[known])
