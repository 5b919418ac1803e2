"""`emi faces`: crops on disk give the features of the videos that they came from, and can be looked at."""

import csv

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import emi
from emi.cli import app
from emi.demo.drawing import Identity, Pose, draw
from extract.faces.align import ARCFACE
from extract.faces.sheet import GAP, LABEL

RATE = 10
TOLERANCE = 2e-4
"""Of features in batches of other sizes, whose convolutions are summed in another order."""
FILMS = {"a/always": "x" * 12, "between": "..xxxx....xxxx", "ending": "xxxx....", "never": "." * 8}
CROPS = {"a/always": 6, "between": 4, "ending": 2, "never": 0}


def write(encode, path, seed, pattern, rate=RATE, times=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    poses = [Pose(jaw=abs(np.sin(i / 2)), centre=(0.5 + 0.002 * i, 0.47)) for i in range(len(pattern))]
    people = [[(Identity.of(seed), pose)] if letter == "x" else [] for letter, pose in zip(pattern, poses, strict=True)]
    return encode(path, [draw(some, 160, 200) for some in people], rate, times)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encode):
    folder = tmp_path_factory.mktemp("crops")
    for seed, (name, pattern) in enumerate(FILMS.items()):
        write(encode, folder / "clips" / f"{name}.mp4", seed, pattern)
    (folder / "clips" / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def done(folder):
    return run("faces", folder / "clips", "--out", folder / "out", "--fps", "5")


def test_the_command_says_what_it_wrote_and_where(folder, done):
    assert done.exit_code == 1
    assert f"wrote {sum(CROPS.values())} crops of 4 clips" in done.output
    assert f"{folder.resolve() / 'out'} holds pictures of people's faces" in done.output
    assert "in any row of 1 clip: never" in done.output
    assert "broken.mp4: is not a media file" in done.output
    assert "broken" in (folder / "out" / "failures.csv").read_text()


def test_the_table_and_the_images_say_where_the_face_is(folder, done):
    with (folder / "out" / "faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name, pattern in FILMS.items():
        of = [row for row in rows if row["id"] == name]
        seen = [letter == "x" for letter in pattern[::2]] if "x" in pattern else [False]
        assert [row["valid"] == "1" for row in of] == seen
        assert [float(row["time"]) for row in of] == pytest.approx([i / 5 for i in range(len(seen))], abs=1e-4)
        assert [int(row["row"]) for row in of] == list(range(1, len(seen) + 1))
        images = sorted(path.name for path in (folder / "out" / name).glob("*.png"))
        assert images == [f"{i + 1:05d}.png" for i, valid in enumerate(seen) if valid]
        for row in of:
            if row["valid"] == "1":
                assert row["track"] == "1"
                assert float(row["left"]) < float(row["left_eye_x"]) < float(row["right_eye_x"]) < float(row["right"])
                assert float(row["score"]) > 0.7
            else:
                assert row["left"] == row["score"] == row["track"] == row["nose_x"] == ""
    crop = np.asarray(Image.open(folder / "out" / "a" / "always" / "00001.png"), float)
    eye, cheek = (crop[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] for x, y in (ARCFACE[0], (25, 75)))
    assert eye.min() + 40 < cheek.min()  # the pupil is where the template has the eye


@pytest.mark.parametrize("missing_faces", ["invalid", "black"])
@pytest.mark.parametrize("max_seconds", [None, 0.5])
def test_rows_of_the_crops_are_those_of_the_videos(folder, done, tmp_path, missing_faces, max_seconds):
    settings = {"fps": 5, "missing_faces": missing_faces, "max_seconds": max_seconds}
    summary, same = compared(folder / "clips", folder / "out", tmp_path, **settings)
    assert (same, summary.failures) == (sorted(FILMS), [])
    assert {note.id: note.missing for note in summary.missing}["never"] == 1


def test_rows_of_a_crop_of_every_frame_have_the_times_of_the_frames(folder, tmp_path, encode):
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("between", "ending", "never"):
        (clips / f"{name}.mp4").write_bytes((folder / "clips" / f"{name}.mp4").read_bytes())
    uneven = [round(1000 * time) for time in np.cumsum([0, 1 / 30, 0.1, 0.07, 1 / 3, 0.05, 0.2])]
    write(encode, clips / "uneven.mp4", 7, ".xx.x..", rate=1000, times=uneven)
    assert run("faces", clips, "--out", tmp_path / "out", "--fps", "native").exit_code == 0
    for max_seconds in (None, 0.7, 0.1):
        (tmp_path / str(max_seconds)).mkdir()
        _, same = compared(clips, tmp_path / "out", tmp_path / str(max_seconds), fps=None, max_seconds=max_seconds)
        assert same == ["between", "ending", "never", "uneven"]


def compared(clips, out, folder, **how):
    """Extract videos and their crops; return the summary of the crops, and the ids of the clips that are the same."""
    settings = {"backbone": "mtcnn", "dtype": "float32"} | how
    emi.extract(clips, folder / "v.zarr", **settings)
    summary = emi.extract(out, folder / "c.zarr", **settings)
    videos, crops = emi.open_cache(folder / "v.zarr"), emi.open_cache(folder / "c.zarr")
    assert crops.header.hop_seconds == videos.header.hop_seconds
    for name in crops.ids:
        crop, video = crops[name], videos[name]
        assert crop.valid.tolist() == video.valid.tolist(), name
        assert (crop.times is None) == (video.times is None)
        assert crop.times is None or crop.times.tolist() == video.times.tolist(), name
        np.testing.assert_allclose(crop.frames, video.frames, rtol=0, atol=TOLERANCE)
    return summary, sorted(crops.ids)


def test_crops_of_another_rate_are_refused(folder, done, tmp_path):
    summary = emi.extract(folder / "out", tmp_path / "other.zarr", backbone="mtcnn")
    assert {failure.id for failure in summary.failures} == {"a/always", "between", "ending"}
    assert {failure.reason for failure in summary.failures} == {
        "holds crops at 5 rows per second, by its faces.csv; use --fps 5"
    }


def test_the_sheet_shows_crops_and_crosses_out_what_is_missing(folder, done):
    sheet = np.asarray(Image.open(folder / "out" / "sheet.png"))
    step, crop = 112 + GAP, np.asarray(Image.open(folder / "out" / "between" / "00002.png"))
    np.testing.assert_array_equal(sheet[step : step + 112, LABEL + step : LABEL + step + 112], crop)
    missing = sheet[step : step + 112, LABEL : LABEL + 112]
    assert (missing[20, 56] == 211).all()
    assert (missing[[5, 5], [5, 106]] == (255, 0, 0)).all()


def test_a_second_run_does_what_is_missing_and_refuses_other_settings(folder, done):
    out = folder / "out"
    crop = out / "between" / "00002.png"
    before = crop.read_bytes(), (out / "faces.csv").read_bytes()
    (out / "between" / "faces.csv").unlink()  # as where a run was killed
    crop.write_bytes(b"half")
    again = run("faces", folder / "clips", "--out", out, "--fps", "5")
    assert "wrote 4 crops of 1 clips; 3 were there" in again.output
    assert (crop.read_bytes(), (out / "faces.csv").read_bytes()) == before
    other = run("faces", folder / "clips", "--out", out, "--fps", "6")
    assert other.exception is not None
    assert "fps (there 5.0, wanted 6.0)" in str(other.exception)


def test_the_summary_says_who_else_is_seen_and_whose_face_was_taken(tmp_path, encode):
    """The table numbers the faces as they appear."""
    (tmp_path / "clips").mkdir()
    first, second = (Identity.of(seed) for seed in (1, 2))
    for name, count in (("one", 1), ("two", 2), ("more", 2)):
        people = [(first, Pose(centre=(0.25, 0.47))), (second, Pose(centre=(0.72, 0.47)))]
        pictures = [draw(people[: count if i > 1 else 1], 200, 320) for i in range(6)]
        encode(tmp_path / "clips" / f"{name}.mp4", pictures, RATE)
    sentence = "2 clips show other people too: more, two; the face was taken that --face right names"
    how = ("--fps", RATE, "--face", "right")
    faces = run("faces", tmp_path / "clips", "--out", tmp_path / "out", *how)
    extracted = run(
        "extract", tmp_path / "clips", "--backbone", "mtcnn", "--cache", tmp_path / "v.zarr", *how, "--device", "cpu"
    )
    for done in (faces, extracted):
        assert done.exit_code == 0
        assert [line for line in done.output.splitlines() if "other people" in line] == [sentence]
    with (tmp_path / "out" / "faces.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["track"] for row in rows if row["id"] == "two"] == ["", "", "2", "2", "2", "2"]
    assert {row["track"] for row in rows if row["id"] == "one"} == {"1"}


def test_pictures_of_others_are_not_written_over(folder, tmp_path):
    theirs = tmp_path / "out" / "between" / "00001.png"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"theirs")
    refused = run("faces", folder / "clips", "--out", tmp_path / "out", "--fps", "5")
    assert refused.exit_code != 0
    assert f"{theirs.parent} holds pictures that emi has not written" in str(refused.exception or refused.output)
    assert theirs.read_bytes() == b"theirs"
