"""A head on voice and face predicts videos with sound, as from the caches of both."""

import csv
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import emi
from emi.cli import app
from emi.demo.drawing import Identity, Pose, draw
from emi.prediction_log import PredictionLog
from extract.faces.image_times import with_videos
from extract.failures import Failure
from extract.sources import Source

RATE = 6
NAMES = ["Joy", "Calm"]


def write(path, seed, sound=True, face=True):
    """A talking head of one second."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=RATE, options={"crf": "12"})
        video.height, video.width, video.pix_fmt = 160, 200, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=16_000, layout="mono") if sound else None
        for i in range(RATE):
            people = [(Identity.of(seed), Pose(smile=np.sin(seed), jaw=abs(np.sin(i))))] if face else []
            frame = av.VideoFrame.from_ndarray(draw(people, 160, 200))
            frame.pts, frame.time_base = i, Fraction(1, RATE)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if audio is not None:
            noise = (3000 * rng.normal(size=(1, 16_000))).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            out.mux([*audio.encode(frame), *audio.encode()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    (folder / "clips").mkdir()
    for i in range(6):
        write(folder / "clips" / f"{i}.mkv", i, face=i != 4)
    emi.extract(folder / "clips", folder / "a.zarr")
    emi.extract(folder / "clips", folder / "f.zarr", backbone="mtcnn", fps=4, min_face=50)
    for split, part in (("train", range(4)), ("valid", range(3, 6))):
        lines = "".join(f"{i},0.{i},0.{9 - i}\n" for i in part)
        (folder / f"{split}.csv").write_text(f"Filename,{','.join(NAMES)}\n{lines}")
    caches = {"audio": folder / "a.zarr", "face": folder / "f.zarr"}
    emi.train_head(caches, folder / "train.csv", folder / "valid.csv", folder / "run", hidden=4, epochs=1)
    return folder


def test_videos_are_predicted_as_from_the_caches_with_the_settings_of_the_run(trained):
    model = emi.load(trained / "run")
    stores = {name: emi.open_cache(trained / f"{name[0]}.zarr") for name in ("audio", "face")}
    for record in model.predict(trained / "clips"):
        clips = {name: store[record["Filename"]] for name, store in stores.items()}
        np.testing.assert_allclose([record[n] for n in NAMES], model.trained.predict(clips), atol=1e-5)
    assert model.stream_failures == []


def test_a_video_without_sound_is_predicted_from_the_face(trained, tmp_path):
    write(tmp_path / "mute.mkv", 1, sound=False)
    model = emi.load(trained / "run")
    record = model.predict(tmp_path)[0]
    assert [failure.reason.split(":")[0] for failure in model.stream_failures] == ["stream 'audio'"]
    assert np.isfinite([record[name] for name in NAMES]).all()


def test_a_folder_of_images_is_predicted_from_the_face(trained, tmp_path):
    (tmp_path / "media" / "x").mkdir(parents=True)
    for i in range(3):
        face = draw([(Identity.of(1), Pose(size=0.8, jaw=0.3 * i))], 112, 112)
        Image.fromarray(face).save(tmp_path / "media" / "x" / f"{i}.png")
    model = emi.load(trained / "run")
    record = model.predict(tmp_path / "media")[0]
    assert record["Filename"] == "x"
    emi.extract(tmp_path / "media", tmp_path / "f.zarr", backbone="mtcnn", fps=4, min_face=50)
    clips = {"audio": None, "face": emi.open_cache(tmp_path / "f.zarr")["x"]}
    np.testing.assert_allclose([record[name] for name in NAMES], model.trained.predict(clips), atol=1e-5)


def test_a_video_without_a_face_is_not_predicted_where_the_run_requires_one(trained, tmp_path):
    caches = {"audio": trained / "a.zarr", "face": trained / "f.zarr"}
    files = (trained / "train.csv", trained / "valid.csv", tmp_path / "run")
    run = emi.train_head(caches, *files, hidden=4, epochs=1, require=["face"], skip_missing=True)
    assert run.skipped == 1
    results = list(emi.load(tmp_path / "run").iterate(trained / "clips"))
    failures = [(result.id, result.reason) for result in results if isinstance(result, Failure)]
    assert failures == [("4", "has nothing of the stream 'face', which the run requires")]
    assert len(results) == 6


def test_a_run_on_black_faces_predicts_videos_with_black_faces(trained, tmp_path):
    emi.extract(trained / "clips", tmp_path / "f.zarr", backbone="mtcnn", fps=4, min_face=50, missing_faces="black")
    files = (trained / "train.csv", trained / "valid.csv", tmp_path / "run")
    emi.train_head({"audio": trained / "a.zarr", "face": tmp_path / "f.zarr"}, *files, hidden=4, epochs=1)
    model, without = emi.load(tmp_path / "run"), trained / "clips" / "4.mkv"
    (record,) = model.predict(without)
    clips = {n: emi.open_cache(p)["4"] for n, p in (("audio", trained / "a.zarr"), ("face", tmp_path / "f.zarr"))}
    assert clips["face"].valid.all()
    np.testing.assert_allclose([record[n] for n in NAMES], model.trained.predict(clips), atol=1e-5)
    blind = model.trained.predict(clips | {"face": emi.open_cache(trained / "f.zarr")["4"]})
    assert not np.allclose([record[n] for n in NAMES], blind, atol=1e-5)


def test_every_frame_of_a_video_is_predicted_as_from_caches_at_the_times_of_its_pictures(trained, tmp_path):
    """Of labels with a row per frame, and faces of every frame; the last two clips are predicted."""
    emi.extract(trained / "clips", tmp_path / "f.zarr", backbone="mtcnn", fps=None, min_face=50)
    assert emi.open_cache(tmp_path / "f.zarr").hop_seconds is None
    for split, part in (("train", (0, 1, 2, 3)), ("valid", (5,))):
        (tmp_path / split).mkdir()
        for i in part:
            rows = "".join(f"{np.sin(i + row):.4f},{np.cos(row):.4f}\n" for row in range(RATE))
            (tmp_path / split / f"{i}.txt").write_text(f"valence,arousal\n{rows}")
    caches = {"audio": trained / "a.zarr", "face": tmp_path / "f.zarr"}
    files = (tmp_path / "train", tmp_path / "valid", tmp_path / "run")
    emi.train_head(caches, *files, head="gru", hidden=4, epochs=1, loss="ccc", label_range=(-1, 1))
    assert "--out FOLDER\n" in (tmp_path / "run" / "README.md").read_text()
    arguments = ["predict", str(trained / "clips" / "5.mkv"), "--model", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found, expected = (
        np.loadtxt(tmp_path / place / "5.txt", delimiter=",", skiprows=1) for place in ("out", "run/predictions_valid")
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    model = emi.load(tmp_path / "run")
    (failure,) = model.iterate_rows([Source("4", trained / "clips" / "4.mkv")])
    assert "no rows of the stream whose times are those of the predictions" in failure.reason


def test_videos_that_are_not_needed_are_refused(trained, tmp_path):
    files = (trained / "train.csv", trained / "valid.csv", tmp_path / "run")
    for stream in ("audio", "face"):
        emi.train_head(trained / f"{stream[0]}.zarr", *files[:2], tmp_path / stream, hidden=4, epochs=1)
        done = CliRunner().invoke(
            app, ["predict", str(trained / "clips"), "--model", str(tmp_path / stream), "--videos", str(tmp_path)]
        )
        assert done.exit_code == 1
        assert "--videos is for folders of images, for runs that also read sound" in str(done.exception or done.output)


def test_folders_of_images_have_the_sound_of_their_videos(trained, tmp_path):
    """At the rate of the run, whose faces do not take the times of the video's frames."""
    (record,) = emi.load(trained / "run").predict(trained / "clips" / "5.mkv")
    emi_faces = [
        "faces",
        str(trained / "clips" / "5.mkv"),
        "--out",
        str(tmp_path / "crops"),
        "--fps",
        "4",
        "--min-face",
        "50",
    ]
    assert CliRunner().invoke(app, emi_faces).exit_code == 0
    arguments = ["predict", str(tmp_path / "crops"), "--model", str(trained / "run"), "--csv", str(tmp_path / "p.csv")]
    silent = CliRunner().invoke(app, arguments)
    assert "has no sound; name the folder of their videos with --videos" in silent.output
    whole = CliRunner().invoke(app, [*arguments, "--videos", str(trained / "clips")])
    assert whole.exit_code == 0, whole.output
    with (tmp_path / "p.csv").open(newline="") as file:
        (found,) = csv.DictReader(file)
    np.testing.assert_allclose([float(found[n]) for n in NAMES], [record[n] for n in NAMES], atol=1e-5)


def test_what_was_predicted_at_the_times_of_other_videos_is_predicted_again(tmp_path):
    (tmp_path / "clip").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(b"video")
    a, b = (with_videos([Source("clip", tmp_path / "clip")], tmp_path / name) for name in ("a", "b"))
    with PredictionLog(tmp_path / "p.csv", "model", a) as log:
        log.add({"Filename": "clip", "Joy": 0.5})
    assert set(PredictionLog(tmp_path / "p.csv", "model", a).records) == {"clip"}
    assert not PredictionLog(tmp_path / "p.csv", "model", b).records
