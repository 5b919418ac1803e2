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
FILMS = {"a/always": "x" * 12, "between": "..xxxx....xxxx", "never": "." * 8}


def write(encode, path, seed, pattern):
    path.parent.mkdir(parents=True, exist_ok=True)
    poses = [Pose(jaw=abs(np.sin(i / 2)), centre=(0.5 + 0.002 * i, 0.47)) for i in range(len(pattern))]
    people = [[(Identity.of(seed), pose)] if letter == "x" else [] for letter, pose in zip(pattern, poses, strict=True)]
    return encode(path, [draw(some, 160, 200) for some in people], RATE)


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
    assert f"wrote {6 + 4} crops of 3 clips" in done.output
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
                assert float(row["left"]) < float(row["left_eye_x"]) < float(row["right_eye_x"]) < float(row["right"])
                assert float(row["score"]) > 0.7
            else:
                assert row["left"] == row["score"] == row["nose_x"] == ""
    crop = np.asarray(Image.open(folder / "out" / "a" / "always" / "00001.png"), float)
    eye, cheek = (crop[round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4] for x, y in (ARCFACE[0], (25, 75)))
    assert eye.min() + 40 < cheek.min()  # the pupil is where the template has the eye


def test_features_of_the_crops_are_those_of_the_videos(folder, done, tmp_path):
    settings = {"backbone": "mtcnn", "dtype": "float32", "fps": 5}
    emi.extract(folder / "clips", tmp_path / "v.zarr", **settings)
    emi.extract(folder / "out", tmp_path / "c.zarr", **settings)
    videos, crops = emi.open_cache(tmp_path / "v.zarr"), emi.open_cache(tmp_path / "c.zarr")
    assert sorted(crops.ids) == ["a/always", "between"]
    for name in crops.ids:
        assert crops[name].valid.tolist() == videos[name].valid.tolist()
        np.testing.assert_allclose(crops[name].frames, videos[name].frames, rtol=1e-5, atol=1e-5)
    summary = emi.extract(folder / "out", tmp_path / "other.zarr", backbone="mtcnn")
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
    assert "wrote 4 crops of 1 clips; 2 were there" in again.output
    assert (crop.read_bytes(), (out / "faces.csv").read_bytes()) == before
    other = run("faces", folder / "clips", "--out", out, "--fps", "6")
    assert other.exception is not None
    assert "fps (there 5.0, wanted 6.0)" in str(other.exception)
