"""What each stream is worth: every subset trained on the same clips, and all streams against all but one."""

import csv

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from emi.cli import app
from train_head.data.labels import read_labels
from train_head.errors import TrainSettingsError
from train_head.evaluation.intervals import paired_bootstrap

SMALL = {"head": "mean", "epochs": 12, "lr": 0.05, "precision": "fp32", "device": "cpu", "seeds": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`audio` knows both targets with noise, `face` the second, `hiss` nothing; a clip lacks the face."""
    folder = tmp_path_factory.mktemp("worth")
    rng = np.random.default_rng(5)
    truth = rng.random((60, 2)).astype(np.float32)
    for name, columns in (
        ("audio", truth + 0.3 * rng.normal(size=truth.shape)),
        ("face", truth[:, 1:]),
        ("hiss", None),
    ):
        header = Header(fingerprint={"backbone": name, "dtype": "float32"}, dim=3, hop_seconds=0.1)
        with CacheWriter(folder / f"{name}.zarr", header) as writer:
            for i in range(60):
                frames = 0.1 * rng.normal(size=(5, 3)).astype(np.float32)
                if columns is not None:
                    frames[:, : columns.shape[1]] += columns[i]
                if (name, i) != ("face", 50):
                    writer.add(Clip(f"{i:05d}", frames, None, None, 0.5))
    for split, part in (("train", range(40)), ("valid", range(40, 60))):
        lines = [f"{i:05d},{truth[i, 0]:.5f},{truth[i, 1]:.5f}" for i in part]
        (folder / f"{split}.csv").write_text("Filename,Joy,Awe\n" + "\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def done(data):
    caches = {name: data / f"{name}.zarr" for name in ("audio", "face", "hiss")}
    return emi.ablate(caches, data / "train.csv", data / "valid.csv", data / "out", streams=True, **SMALL)


def test_every_subset_is_trained_and_a_useful_stream_is_told_from_noise(data, done):
    assert ["+".join(part) for part in done.results] == [
        "audio", "face", "hiss", "audio+face", "audio+hiss", "face+hiss", "audio+face+hiss",
    ]  # fmt: skip
    assert done.worth["audio"].mean["low"] > 0
    assert done.worth["hiss"].mean["low"] < 0 < done.worth["hiss"].mean["high"]
    files = {place.name for place in (data / "out").iterdir() if place.is_file()}
    assert files >= {"streams.csv", "streams.md", "streams.svg", "streams.png"}
    assert "audio + face + hiss" in done.table()
    assert "![](streams.svg)" in (data / "out" / "streams.md").read_text()


def test_the_figures_are_those_of_the_written_predictions(data, done):
    labels = read_labels(data / "valid.csv")
    every, without = (
        read_labels(data / "out" / part / "predictions_valid.csv", check_range=False)
        for part in ("audio+face+hiss", "audio+hiss")
    )
    assert every.ids == labels.ids
    found = paired_bootstrap(every.values, without.values, labels.values, labels.names, metric="pearson")
    assert found.mean == done.worth["face"].mean
    with (data / "out" / "streams.csv").open() as file:
        rows = {row["streams"]: row for row in csv.DictReader(file)}
    assert rows["audio+hiss"]["without"] == "face"
    assert float(rows["audio+hiss"]["gain"]) == found.mean["difference"]
    assert rows["audio"]["without"] == rows["audio"]["gain"] == ""
    scores = [np.corrcoef(every.values[:, k], labels.values[:, k])[0, 1] for k in range(2)]
    assert float(rows["audio+face+hiss"]["ensemble"]) == pytest.approx(np.mean(scores), abs=1e-6)


def test_again_there_is_nothing_to_do(data, done):
    caches = {name: data / f"{name}.zarr" for name in ("audio", "face", "hiss")}
    again = emi.ablate(caches, data / "train.csv", data / "valid.csv", data / "out", streams=True, **SMALL)
    assert again.nothing_to_do
    assert again.csv() == done.csv()


def test_on_the_command_line_with_settings_of_streams(data, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text('head = "mean"\nprecision = "fp32"\n[streams.face]\nstandardise = true\n')
    options = {"config": config, "epochs": 1, "seeds": 1, "out": tmp_path / "o", "train": data / "train.csv"}
    command = ["ablate", "--streams", "--valid", str(data / "valid.csv")]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    for name in ("audio", "face"):
        command += ["--cache", f"{name}={data / f'{name}.zarr'}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "audio + face" in result.output
    assert "all streams against all but this one" in result.output


def test_one_stream_is_refused_and_so_is_a_setting_of_an_unknown_one(data, tmp_path):
    files = data / "train.csv", data / "valid.csv"
    with pytest.raises(TrainSettingsError, match="subsets of 2 to 5 named streams, and there are 1"):
        emi.ablate(data / "audio.zarr", *files, tmp_path / "a", streams=True, **SMALL)
    caches = {name: data / f"{name}.zarr" for name in ("audio", "face")}
    with pytest.raises(TrainSettingsError, match="faces"):
        emi.ablate(caches, *files, tmp_path / "b", streams=True, **SMALL, **{"faces.head": "mean"})
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
