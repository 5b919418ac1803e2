"""Sweeps on several streams: settings of each, and clips that lack one."""

import csv
import tomllib

import numpy as np
import pytest

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.errors import TrainSettingsError


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch, warm_children: None) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two caches of which `face` lacks a training clip, and labels."""
    folder, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    labels = {f"{i:05d}": rng.uniform(size=2) for i in range(16)}
    for name, dim, clips in (("audio", 4, list(labels)), ("face", 5, [clip for clip in labels if clip != "00003"])):
        header = Header(fingerprint={"backbone": name, "dtype": "float32"}, dim=dim, hop_seconds=0.1)
        with CacheWriter(folder / f"{name}.zarr", header) as writer:
            for clip in clips:
                frames = rng.normal(size=(6, dim)).astype(np.float32)
                frames[:, 0] += 3 * labels[clip][int(name == "face")]
                writer.add(Clip(clip, frames, None, None, 0.6))
    for split, part in (("train", list(labels)[:10]), ("valid", list(labels)[10:])):
        lines = [f"{clip},{labels[clip][0]:.3f},{labels[clip][1]:.3f}" for clip in part]
        (folder / f"{split}.csv").write_text("Filename,Joy,Calm\n" + "\n".join(lines) + "\n")
    return folder


def sweep(data, out, space: str, **settings):
    (out.parent / "space.toml").write_text(f"epochs = 2\nbatch_size = 4\n{space}")
    caches = {name: data / f"{name}.zarr" for name in ("audio", "face")}
    files = (data / "train.csv", data / "valid.csv", out, out.parent / "space.toml")
    return emi.sweep(
        caches, *files, **({"trials": 8, "jobs": 1, "top": 0, "sampler": "random", "pruner": "none"} | settings)
    )


def test_no_trial_fails_for_an_option_that_its_streams_head_lacks(data, tmp_path):
    result = sweep(data, tmp_path / "out", '[face]\nhead = ["mean", "mlp"]\nhidden = [4, 8]\n')
    assert (result.status.complete, result.status.failed) == (8, 0)
    with (tmp_path / "out" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["face.head"] for row in rows} == {"mean", "mlp"}
    assert all((row["face.hidden"] != "") == (row["face.head"] == "mlp") for row in rows)


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (
            "[fase]\nstandardise = [true, false]\n",
            {},
            "unknown stream or table in the space 'fase'; did you mean 'face'",
        ),
        ("[lstmm]\nhidden = [4, 8]\n", {}, "unknown stream or table in the space 'lstmm'; did you mean 'lstm'"),
        ("lr = [1e-3, 1e-2]\n", {"streams": {"fase": {}}}, "'fase'; did you mean 'face'"),
        ("lr = [1e-3, 1e-2]\n", {"fase.head": "mean"}, "'fase'; did you mean 'face'"),
    ],
)
def test_a_misspelt_stream_is_found_before_the_first_trial(data, tmp_path, space, settings, message):
    with pytest.raises(TrainSettingsError, match=message):
        sweep(data, tmp_path / "out", space, **settings)
    assert not (tmp_path / "out").exists()


def test_a_stream_whose_name_torch_uses_is_found_before_the_first_trial(data, tmp_path):
    (tmp_path / "space.toml").write_text("lr = [1e-3, 1e-2]\n")
    caches = {"audio": data / "audio.zarr", "training": data / "face.zarr"}
    files = (data / "train.csv", data / "valid.csv", tmp_path / "out", tmp_path / "space.toml")
    with pytest.raises(TrainSettingsError, match="'training' cannot name a stream"):
        emi.sweep(caches, *files)
    assert not (tmp_path / "out").exists()


def test_principal_components_are_fitted_on_the_clips_that_a_stream_has(data, tmp_path):
    result = sweep(data, tmp_path / "out", "lr = [1e-3, 1e-2]\n", pca=3, trials=2)
    assert result.status.complete == 2
    fitted = {
        name: emi.open_cache(tmp_path / "out" / f"cheap-{name}.zarr").fingerprint["derived"]["fitted_on"]["clips"]
        for name in ("audio", "face")
    }
    assert fitted == {"audio": 10, "face": 9}


def test_the_best_settings_of_the_fusion_are_told_apart_and_written(data, tmp_path):
    result = sweep(data, tmp_path / "out", "[fusion]\nhidden = [5, 6]\n", top=2, seeds=1, trials=6)
    assert sorted(one.values["fusion.hidden"] for one in result.retrained) == [5, 6]
    best = tomllib.loads((tmp_path / "out" / "best.toml").read_text())
    assert best["fusion"]["hidden"] == result.retrained[0].values["fusion.hidden"]
    assert best["streams"] == {"audio": {}, "face": {}}
