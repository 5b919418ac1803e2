"""Demo data with valence and arousal per frame: the layout of Aff-Wild2, and labels that voice and face follow."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from emi.cli import app
from emi.demo.aff_wild2.plan import SETS, plan_videos
from emi.demo.layout import ANNOTATIONS, DemoSummary
from emi.demo.make import make_demo
from emi.demo.settings import DemoFolderError, DemoSettingsError
from extract.faces.align import ARCFACE
from extract.faces.mtcnn import Detector, DetectorSettings
from train_head.data.frame_labels import read_frame_labels
from train_head.data.label_format import LabelFormat

TRIAL = re.compile(r"(?:video)?\d+(?:-\d+-\d+x\d+)?(_left|_right)?")
VIDEOS = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoSummary:
    return make_demo(tmp_path_factory.mktemp("data") / "va", kind="va", clips=VIDEOS, seed=3)


def frames_of(folder: Path) -> dict[str, int]:
    """Number of frames by video, as a decoder counts them."""
    counts = {}
    for path in (folder / "videos").iterdir():
        with av.open(str(path)) as video:
            counts[path.stem] = sum(1 for _ in video.decode(video=0))
    return counts


def annotations(folder: Path) -> dict[str, np.ndarray]:
    """(rows, 2) by trial."""
    files = (folder / ANNOTATIONS).glob("*/*.txt")
    return {file.stem: np.loadtxt(file, delimiter=",", skiprows=1) for file in files}


def crop_numbers(folder: Path) -> dict[str, set[int]]:
    return {trial.name: {int(f.stem) for f in trial.iterdir()} for trial in (folder / "cropped_aligned").iterdir()}


def source(trial: str) -> str:
    return re.sub("_left$|_right$", "", trial)


def test_folders_and_names_are_those_of_aff_wild2(demo: DemoSummary) -> None:
    assert sorted(path.name for path in demo.folder.iterdir()) == [
        *("README.md", "annotations", "cropped_aligned", "demo.json", "videos")
    ]
    trials = annotations(demo.folder)
    assert len(trials) == demo.train + demo.valid
    assert all(TRIAL.fullmatch(name) for name in trials)
    assert set(crop_numbers(demo.folder)) == set(trials)
    assert {source(name) for name in trials} == set(frames_of(demo.folder))
    for file in (demo.folder / ANNOTATIONS).glob("*/*.txt"):
        assert file.read_text().startswith("valence,arousal\n")
    for crop in (demo.folder / "cropped_aligned").glob("*/*.jpg"):
        assert re.fullmatch(r"\d{5}\.jpg", crop.name)


def test_crops_are_112_pixels_and_show_the_face_where_encoders_expect_it(demo: DemoSummary) -> None:
    crops = sorted((demo.folder / "cropped_aligned").glob("*/*.jpg"))[::40]
    images = np.stack([np.asarray(Image.open(path)) for path in crops])
    assert images.shape[1:] == (112, 112, 3)
    padded = np.pad(images, ((0, 0), (56, 56), (56, 56), (0, 0)), mode="edge")  # the detector wants some surroundings
    found = Detector(DetectorSettings())(padded)
    apart = [np.abs(faces.landmarks[0] - 56 - ARCFACE).max() for faces in found if len(faces.landmarks)]
    assert len(apart) > 0.9 * len(images)
    assert np.median(apart) < 8


def test_videos_have_the_three_rates_and_sound(demo: DemoSummary) -> None:
    rates = set()
    for path in (demo.folder / "videos").iterdir():
        with av.open(str(path)) as video:
            picture, sound = video.streams.video[0], video.streams.audio[0]
            rates.add(picture.average_rate)
            assert float(sound.duration * sound.time_base) == pytest.approx(
                float(picture.duration * picture.time_base), abs=0.15
            )
    assert sorted(round(float(rate), 2) for rate in rates) == [7.5, 25.0, 29.97]


def test_left_and_right_trials_share_one_video_and_differ_in_labels(demo: DemoSummary) -> None:
    trials = annotations(demo.folder)
    pairs = [name.removesuffix("_left") for name in trials if name.endswith("_left")]
    assert len(pairs) >= 2
    for name in pairs:
        left, right = trials[f"{name}_left"], trials[f"{name}_right"]
        rows = min(len(left), len(right))
        assert np.abs(left[:rows] - right[:rows]).mean() > 0.1
    for split in SETS.values():
        names = [f.stem for f in (demo.folder / ANNOTATIONS / split).iterdir()]
        assert sorted(n for n in names if n.endswith("_left")) == sorted(
            n.replace("_right", "_left") for n in names if n.endswith("_right")
        )


def test_crops_have_gaps_and_never_more_numbers_than_frames(demo: DemoSummary) -> None:
    frames = frames_of(demo.folder)
    missing = {trial: frames[source(trial)] - len(there) for trial, there in crop_numbers(demo.folder).items()}
    assert all(0 < count < 0.2 * frames[source(trial)] for trial, count in missing.items())
    assert all(min(n) >= 1 and max(n) <= frames[source(trial)] for trial, n in crop_numbers(demo.folder).items())


def test_rows_differ_from_frames_by_at_most_two_and_some_do(demo: DemoSummary) -> None:
    frames, trials = frames_of(demo.folder), annotations(demo.folder)
    apart = {len(rows) - frames[source(trial)] for trial, rows in trials.items()}
    assert apart <= {-2, -1, 0, 1, 2}
    assert {0} < apart
    assert min(apart) < 0 < max(apart)


def test_labels_lie_in_the_range_or_are_not_annotated_in_both_columns(demo: DemoSummary) -> None:
    for rows in annotations(demo.folder).values():
        unknown = rows == -5
        assert (unknown[:, 0] == unknown[:, 1]).all()
        assert 0 < unknown[:, 0].mean() < 0.25
        assert np.abs(rows[~unknown]).max() <= 1
        assert rows[~unknown[:, 0]].std(axis=0).min() > 0.05


def test_the_labels_are_read_as_labels_per_frame(demo: DemoSummary) -> None:
    labels = read_frame_labels(demo.folder / ANNOTATIONS / SETS["train"], LabelFormat(range=(-1.0, 1.0)))
    assert labels.names == ("valence", "arousal")
    assert len(labels.ids) == demo.train


def test_no_person_is_in_both_splits() -> None:
    videos = plan_videos(12, 0)
    train, valid = ({t.voice for v in videos if v.split == split for t in v.trials} for split in SETS)
    assert train
    assert valid
    assert not train & valid
    faces = [trial.face for video in videos for trial in video.trials]
    assert len(set(faces)) == len(faces)


def test_each_split_has_a_few_dozen_seconds_by_default() -> None:
    videos = plan_videos(12, 0)
    for split in SETS:
        assert 15 < sum(len(v.times) / v.fps for v in videos if v.split == split) < 75


def test_the_same_seed_makes_the_same_bytes_and_another_does_not(tmp_path: Path) -> None:
    def digests(name: str, seed: int) -> list[str]:
        folder = make_demo(tmp_path / name, kind="va", clips=4, seed=seed).folder
        files = sorted(path for path in folder.rglob("*.*") if path.is_file())
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]

    first = digests("first", 0)
    assert digests("second", 0) == first
    assert not set(digests("other", 1)) & set(first)


def test_a_missing_crop_is_noticed(demo: DemoSummary) -> None:
    assert not make_demo(demo.folder, kind="va", clips=VIDEOS, seed=3).made
    crop = next((demo.folder / "cropped_aligned").glob("*/*.jpg"))
    kept = crop.read_bytes()
    crop.unlink()
    with pytest.raises(DemoFolderError, match=rf"{demo.crops - 1} of {demo.crops} cropped_aligned"):
        make_demo(demo.folder, kind="va", clips=VIDEOS, seed=3)
    crop.write_bytes(kept)


@pytest.mark.parametrize(
    ("given", "said"), [({"kind": "ex"}, "emi or va"), ({"kind": "va", "faces": False}, "no-faces")]
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(DemoSettingsError, match=said):
        make_demo(tmp_path / "demo", **given)


def test_the_command_makes_either_kind(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["demo-data", str(tmp_path / "va"), "--kind", "va", "--clips", "4"])
    assert made.exit_code == 0, made.output
    assert "4 clips" in made.output
    made = CliRunner().invoke(app, ["demo-data", str(tmp_path / "emi"), "--clips", "4", "--no-faces"])
    assert made.exit_code == 0, made.output
    assert "other voices" in made.output
