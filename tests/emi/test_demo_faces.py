"""The faces of the demo: a detector finds them, they show what the labels say, and the mouth follows the sound."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import emi
from emi.demo.acting import act, follow_sound
from emi.demo.dials import FACE, VOICE, turn_dials
from emi.demo.drawing import Identity, Pose, draw, find_landmarks
from emi.demo.labels import EMOTIONS
from emi.demo.layout import DemoSummary
from emi.demo.make import make_demo
from emi.demo.mimicry import FPS, HEIGHT, WIDTH
from emi.demo.settings import MAX_CLIPS
from extract.faces.mtcnn import Detector, DetectorSettings

RATE = 22050


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return make_demo(tmp_path_factory.mktemp("data") / "demo", clips=6, seed=7)


def read(path: Path) -> tuple[list[np.ndarray], np.ndarray, Fraction]:
    """Pictures, sound and rate of a film."""
    with av.open(str(path)) as film:
        rate = film.streams.video[0].average_rate
        pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    with av.open(str(path)) as film:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in film.decode(audio=0)])
    return pictures, sound, rate


def test_every_clip_has_a_film_with_the_sound_of_its_mp3(demo: DemoSummary) -> None:
    assert demo.videos == demo.clips == 6
    for number in range(6):
        pictures, sound, rate = read(demo.folder / "raw" / f"{number:05d}.mp4")
        with av.open(str(demo.folder / "audio" / f"{number:05d}.mp3")) as mp3:
            alone = np.concatenate([frame.to_ndarray()[0] for frame in mp3.decode(audio=0)])
        assert pictures[0].shape == (HEIGHT, WIDTH, 3)
        assert rate == FPS
        assert len(sound) / RATE == pytest.approx(len(pictures) / FPS, abs=0.1)
        assert len(sound) / RATE == pytest.approx(len(alone) / RATE, abs=0.1)
        assert sound.std() == pytest.approx(alone.std(), rel=0.1)


def test_the_detector_finds_the_face_in_every_picture_of_every_clip(demo: DemoSummary, tmp_path: Path) -> None:
    emi.extract(demo.folder / "raw", tmp_path / "face.zarr", backbone="mtcnn")
    store = emi.open_cache(tmp_path / "face.zarr")
    assert len(store) == 6
    assert all(store[clip].valid.all() for clip in store)


def test_films_and_sounds_are_the_same_with_and_without_faces(demo: DemoSummary, tmp_path: Path) -> None:
    alone = make_demo(tmp_path / "alone", clips=6, seed=7, faces=False)
    for name in [*(f"audio/{number:05d}.mp3" for number in range(6)), "train_split.csv", "valid_split.csv"]:
        assert (demo.folder / name).read_bytes() == (alone.folder / name).read_bytes()
    assert not (alone.folder / "raw").exists()


def test_each_clip_has_a_face_of_its_own_and_another_seed_has_others() -> None:
    identities = {Identity.of(seed * MAX_CLIPS + number) for seed in (0, 1) for number in range(200)}
    assert len(identities) == 400


def test_some_emotions_are_for_the_ear_and_others_for_the_eye() -> None:
    seen = {emotion for dial in FACE.values() for emotion in dial.moves}
    assert seen < set(EMOTIONS)
    assert {emotion for dial in VOICE.values() for emotion in dial.moves} == set(EMOTIONS)


@pytest.mark.parametrize(("emotion", "part", "sign"), [("Joy", "smile", 1), ("Amusement", "blink", 1)])
def test_an_intensity_moves_its_part_of_the_face(emotion: str, part: str, sign: int) -> None:
    nothing = dict.fromkeys(EMOTIONS, 0.0)
    moved = [turn_dials(FACE, {**nothing, emotion: x}, np.random.default_rng(0))[part] for x in (0.0, 0.5, 1.0)]
    assert (sign * np.diff(moved) > 0.2).all()


def test_a_silent_face_keeps_its_mouth_shut() -> None:
    times = np.arange(12) / 12
    assert (follow_sound(np.zeros(RATE, np.float32), RATE, times, 12) == 0).all()


def test_the_mouth_is_open_while_there_is_sound() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    sound[: RATE // 2] = 0
    opened = follow_sound(sound, RATE, np.arange(12) / 12, 12)
    assert (opened[:6] == 0).all()
    assert (opened[6:] > 0.9).all()
    assert opened.max() <= 1


def test_a_sound_shorter_than_its_pictures_leaves_the_mouth_shut_after_its_end() -> None:
    opened = follow_sound(np.ones(RATE // 2, np.float32), RATE, np.arange(12) / 12, 12)
    np.testing.assert_allclose(opened, [1.0] * 6 + [0.0] * 6, atol=1e-6)


def test_an_actor_shows_the_given_expression_and_moves_slowly() -> None:
    times = np.arange(50) / 25
    poses = act({"smile": np.linspace(-1, 1, 50), "jaw": np.zeros(50)}, times, np.random.default_rng(0))
    np.testing.assert_array_equal([pose.smile for pose in poses], np.linspace(-1, 1, 50))
    assert max(np.abs(np.diff([pose.roll for pose in poses]))) < 1  # degree per picture
    assert len({pose.yaw for pose in poses}) == 50


@pytest.mark.parametrize("pose", [Pose(), Pose(roll=15, yaw=0.5, smile=0.8), Pose(jaw=1.0, centre=(0.4, 0.5))])
def test_landmarks_lie_where_the_detector_finds_them(pose: Pose) -> None:
    pose = replace(pose, size=0.7)
    found = Detector(DetectorSettings())(draw([(Identity.of(2), pose)])[None])[0]
    drawn = find_landmarks(Identity.of(2), pose, 240, 320)
    apart = np.abs(found.landmarks[0] - drawn).max(axis=1)
    assert len(found.landmarks) == 1
    assert apart.max() < 0.08 * 0.7 * 240, apart
