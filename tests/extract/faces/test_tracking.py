"""One face per clip: followed by overlap, chosen by a rule, and never made up where it was not found."""

import numpy as np
import pytest

from emi.demo.drawing import Identity, Pose, draw
from extract.errors import ExtractSettingsError
from extract.faces.mtcnn import Detector, Faces
from extract.faces.tracking import TrackingSettings, track_faces
from extract.faces.video import Pictures, Video

FPS = 6.0


def face(x, y=50.0, side=40.0, score=0.9):
    """Box, score and landmarks of a face centred at x, y."""
    box = [x - side / 2, y - side / 2, x + side / 2, y + side / 2]
    return box, score, [[x - 8, y - 5], [x + 8, y - 5], [x, y], [x - 6, y + 9], [x + 6, y + 9]]


def clip(rows, settings=None, *, fps=FPS, block=5, shown=None, size=(100, 200)):
    """Track made-up faces, a list per row; the pictures hold the number of their row, and blocks are short."""
    shown = np.ones(len(rows), bool) if shown is None else np.array(shown)
    images = np.zeros((len(rows), *size, 3), np.uint8) + np.arange(len(rows), dtype=np.uint8)[:, None, None, None]
    times = np.arange(len(rows))[:, None] / fps + [0, 1 / fps]
    blocks = [
        Pictures(images[i : i + block], times[i : i + block], shown[i : i + block]) for i in range(0, len(rows), block)
    ]
    searched = []

    def detect(pictures):
        found = []
        for number in pictures[:, 0, 0, 0].tolist():
            searched.append(number)
            boxes, scores, points = zip(*rows[number], strict=True) if rows[number] else ([], [], [])
            found.append(
                Faces(
                    np.array(boxes, np.float32).reshape(-1, 4),
                    np.array(scores, np.float32),
                    np.array(points, np.float32).reshape(-1, 5, 2),
                )
            )
        return found

    return track_faces(blocks, detect, settings or TrackingSettings()), searched


def centres(chosen):
    return [None if np.isnan(x) else round(float(x), 3) for x in chosen.boxes[:, [0, 2]].mean(axis=1)]


def test_a_moving_face_is_one_track_in_the_presence_of_another():
    rows = [[face(50 + 4 * i), face(180 - 4 * i, y=20)] for i in range(20)]
    chosen, _ = clip(rows, TrackingSettings(face="left"))
    assert centres(chosen) == [50 + 4 * i for i in range(20)]
    assert chosen.others == 1
    assert chosen.valid.all()
    assert chosen.share_without == 0
    np.testing.assert_allclose(chosen.landmarks[3], face(62)[2])
    np.testing.assert_allclose(chosen.scores, 0.9)


def test_rows_without_the_face_are_not_valid_and_hold_no_numbers():
    rows = [[face(50)] if i not in (0, 4, 5) else [face(150)] if i == 4 else [] for i in range(12)]
    chosen, _ = clip(rows)
    assert np.flatnonzero(~chosen.valid).tolist() == [0, 4, 5]
    assert np.isnan(chosen.boxes[~chosen.valid]).all()
    assert np.isnan(chosen.landmarks[~chosen.valid]).all()
    assert chosen.share_without == pytest.approx(3 / 12)
    assert len(chosen.valid) == len(chosen.times) == 12


@pytest.mark.parametrize(("gap", "tracks"), [(5, 1), (6, 2)])
def test_a_track_survives_a_second_without_the_face(gap, tracks):
    rows = [[face(50)]] * 8 + [[]] * gap + [[face(52)]] * 6
    chosen, _ = clip(rows)
    assert chosen.valid.sum() == (14 if tracks == 1 else 8)
    assert chosen.others == tracks - 1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("longest", 30),
        ("largest", 170),
        ("first", 100),
        ("left", 30),
        ("right", 170),
        ("0.7,0,1,1", 170),
        ("0.4,0.2,0.6,0.9", 100),
    ],
)
def test_the_face_is_chosen_by_a_rule(rule, expected):
    first, long, large, fleeting = face(100), face(30), face(170, side=60), face(8, side=16)
    rows = [[first]] + [[first, long]] * 8 + [[long, large]] * 9 + [[long, fleeting]] + [[long]]
    chosen, _ = clip(rows, TrackingSettings(face=rule))
    assert {x for x in centres(chosen) if x is not None} == {expected}
    assert chosen.others == 2, "who appears in one picture of twenty is not counted"


def test_a_region_without_a_face_gives_no_valid_row():
    chosen, _ = clip([[face(50)]] * 4, TrackingSettings(face="0.6,0,1,1"))
    assert not chosen.valid.any()
    assert chosen.others == 1


def test_a_clip_without_faces_has_all_its_rows():
    chosen, _ = clip([[]] * 7)
    assert chosen.valid.tolist() == [False] * 7
    assert chosen.share_without == 1
    assert chosen.boxes.shape == (7, 4)


def test_faces_are_searched_in_every_nth_picture_and_interpolated_between():
    rows = [[face(50 + 3 * i, score=0.8 + 0.01 * i)] for i in range(12)]
    chosen, searched = clip(rows, TrackingSettings(detect_every=4))
    assert searched == [0, 4, 8, 11]
    np.testing.assert_allclose(centres(chosen), [50 + 3 * i for i in range(12)])
    np.testing.assert_allclose(chosen.landmarks[5], face(65)[2], rtol=1e-6)
    assert chosen.valid.all()


def test_nothing_is_interpolated_to_a_picture_without_the_face():
    rows = [[face(50)] if i != 4 else [] for i in range(9)]
    chosen, _ = clip(rows, TrackingSettings(detect_every=2))
    assert np.flatnonzero(~chosen.valid).tolist() == [3, 4, 5]


def test_steps_of_more_than_a_second_keep_a_track():
    assert clip([[face(50)]] * 5, fps=0.5)[0].valid.all()


def test_nothing_is_searched_before_the_first_picture():
    chosen, searched = clip([[face(50)]] * 6, shown=[False, False, True, True, True, True])
    assert searched == [2, 3, 4, 5]
    assert chosen.valid.tolist() == [False, False, True, True, True, True]


@pytest.mark.parametrize("rule", ["biggest", "0,0,1", "0.5,0,0.4,1", "0,0,2,1", "nan,0,1,1"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(ExtractSettingsError, match="--face"):
        TrackingSettings(face=rule)


def test_two_people_in_a_video_are_told_apart(tmp_path, encode):
    left, right = Identity.of(3), Identity.of(8)
    pictures = []
    for i in range(24):
        people = [(left, Pose(centre=(0.27 + 0.002 * i, 0.5), jaw=(i % 6) / 6))]
        people += [(right, Pose(centre=(0.75, 0.5), size=0.5))] if i < 16 else []
        pictures.append(draw(people))
    path = encode(tmp_path / "x.mp4", pictures, rate=12)
    chosen = {
        rule: track_faces(Video(path, fps=FPS), Detector(), TrackingSettings(face=rule))
        for rule in ("longest", "left", "right")
    }
    assert chosen["longest"].valid.all()
    assert len(chosen["longest"].valid) == 12
    np.testing.assert_array_equal(chosen["longest"].boxes, chosen["left"].boxes)
    assert chosen["right"].valid.tolist() == [True] * 8 + [False] * 4
    assert np.nanmin(chosen["right"].boxes[:, 0]) > 160 > np.nanmax(chosen["left"].boxes[:, 2])
    assert {c.others for c in chosen.values()} == {1}
