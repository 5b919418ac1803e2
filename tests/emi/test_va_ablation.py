"""The ablation of configs/va.toml on demo data, from crops and videos to the table, by the commands."""

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from emi.cli import app
from emi.demo.layout import ANNOTATIONS
from train_head.protocols import read_rows
from train_head.runs.run_folder import read_config_file

CONFIGS = Path(__file__).parents[2] / "configs"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.timeout(900)
def test_every_row_of_the_ablation_is_trained_on_demo_videos_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
    monkeypatch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)
    run("demo-data", tmp_path / "demo", "--kind", "va", "--clips", 6)
    videos, annotations = tmp_path / "demo" / "videos", tmp_path / "demo" / ANNOTATIONS
    of_faces = ("extract", tmp_path / "demo" / "cropped_aligned", "--backbone", "mtcnn", "--videos", videos)
    run(*of_faces, "--cache", tmp_path / "plain.zarr")
    run(*of_faces, "--cache", tmp_path / "visual.zarr", "--missing-faces", "black")
    run("extract", videos, "--backbone", "mfcc", "--cache", tmp_path / "audio.zarr", "--fps", "native")
    arguments = [
        "ablate",
        "--config",
        CONFIGS / "va.toml",
        "--rows",
        CONFIGS / "va-ablation.toml",
        "--ids",
        "aff-wild2",
    ]
    for stream in ("plain", "visual", "audio"):
        arguments += ["--cache", f"{stream}={tmp_path / stream}.zarr"]
    arguments += ["--train", annotations / "Train_Set", "--valid", annotations / "Validation_Set"]
    arguments += ["--out", tmp_path / "parts", "--epochs", 1, "--seeds", 1]
    table = run(*arguments)
    rows = read_rows(CONFIGS / "va-ablation.toml")
    assert [row.name for row in rows][-2:] == ["Transformer (configs/va.toml)", "smoothing"]
    with (tmp_path / "parts" / "ablation.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["row"] for record in records] == [row.name for row in rows]
    assert all(float(record["low"]) <= float(record["high"]) for record in records)
    assert "bootstrap resamples of 2 groups" in table
    for row in rows:
        config = read_config_file(tmp_path / "parts" / row.folder / "seed-0")
        assert set(config["features"]) == set(row.streams)
        assert (tmp_path / "parts" / row.folder / "seed-0" / "smoothing.toml").is_file() == (row.name == "smoothing")
    assert "nothing to do" in run(*arguments)
    whole = tmp_path / "parts" / rows[-2].folder / "seed-0"
    assert_crops_are_predicted_with_the_sound_of_their_videos(whole, tmp_path / "demo", tmp_path / "out")


def assert_crops_are_predicted_with_the_sound_of_their_videos(trained, demo, out):
    run("predict", demo / "cropped_aligned", "--videos", demo / "videos", "--model", trained, "--out", out)
    assert not (out.parent / "failures.csv").exists()
    files = sorted((trained / "predictions_valid").glob("*.txt"))
    assert any(file.stem.endswith("_left") for file in files)
    for file in files:
        found, expected = (np.loadtxt(place, delimiter=",", skiprows=1) for place in (out / file.name, file))
        np.testing.assert_allclose(found[: len(expected)], expected[: len(found)], atol=1e-2)  # 1e-5 in float32
