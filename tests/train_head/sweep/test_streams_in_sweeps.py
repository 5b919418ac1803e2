"""Sweeps on several streams: settings of each, and clips that lack one."""

import csv
import re
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from emi.cli import app
from train_head.data.labels import read_labels
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.runs.load import load_head


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch, warm_children: None) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
    monkeypatch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)


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
        (
            'streams = ["audio", "audio+fase"]\n',
            {},
            "unknown stream in `streams` of the space 'fase'; did you mean 'face'",
        ),
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


SUBSETS = """
streams = ["audio", "face+audio"]
head = ["mean", "gru"]
auxiliary = [0.0, 0.1]
[gru]
hidden = [3, 4]
[face]
head = ["mean", "mlp"]
hidden = [4, 8]
[fusion]
name = ["concat", "late"]
hidden = [5, 6]
"""


def test_trials_read_some_of_the_streams_and_draw_only_what_these_have(data, tmp_path):
    result = sweep(data, tmp_path / "out", SUBSETS, trials=24)
    assert (result.status.complete, result.status.failed) == (24, 0)
    with (tmp_path / "out" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["streams"] for row in rows} == {"audio", "face+audio"}
    both = [row for row in rows if row["streams"] == "face+audio"]
    assert {row["face.head"] for row in both} == {"mean", "mlp"}
    assert {row["fusion.name"] for row in both} == {"concat", "late"}
    for row in rows:
        alone = row["streams"] == "audio"
        assert (row["face.head"] == "") == (row["auxiliary"] == "") == alone
        assert (row["face.hidden"] != "") == (row["face.head"] == "mlp")
        assert (row["fusion.hidden"] != "") == (row["fusion.name"] == "concat" and not alone)
        assert (row["gru.hidden"] != "") == (row["head"] == "gru")


def test_the_best_runs_are_on_the_streams_that_their_trials_chose(data, tmp_path):
    space = 'streams = ["audio", "face"]\nhead = "mean"\nlr = 1e-2\n'
    result = sweep(data, tmp_path / "out", space, top=2, seeds=1, trials=6)
    assert sorted(one.values["streams"] for one in result.retrained) == ["audio", "face"]
    stores = {name: emi.open_cache(data / f"{name}.zarr") for name in ("audio", "face")}
    for one in result.retrained:
        folder, stream = one.result.folder / "seed-0", one.values["streams"]
        config = tomllib.loads((folder / "config.toml").read_text())
        assert config["features"].keys() == config["streams"].keys() == config["data"]["caches"].keys() == {stream}
        trained, first = load_head(folder), read_labels(folder / "predictions_valid.csv", check_range=False)
        expected = [trained.predict({stream: stores[stream][clip]}) for clip in first.ids]
        np.testing.assert_allclose(first.values, expected, atol=1e-6)
        # the trial saw the same stream
        assert one.result.valid.members[0].mean_pearson == pytest.approx(one.trial_score, abs=1e-6)
    best = result.retrained[0].values["streams"]
    assert result.best_streams == (best,)
    text = (tmp_path / "out" / "best.toml").read_text()
    assert text.startswith(f"# of the streams {best}: give the caches of these only\n")
    assert tomllib.loads(text)["streams"] == {best: {}}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"takes, with the caches of the streams {best}:" in page
    assert f"streams={best}" in result.table()
    of_run = tomllib.loads((result.retrained[0].result.folder / "seed-0" / "config.toml").read_text())
    given = {key: value for key, value in tomllib.loads(text).items() if key not in ("device", "precision")}
    assert given == {key: of_run[key] for key in given}
    resumed = sweep(data, tmp_path / "out", space, top=2, seeds=1, trials=6)
    assert resumed.nothing_to_do
    with pytest.raises(RunFolderError, match=r"streams in --space \(there 'one of audio, face', now 'one of audio"):
        sweep(data, tmp_path / "out", 'streams = ["audio", "audio+face"]\nhead = "mean"\nlr = 1e-2\n')


def test_one_choice_of_streams_is_that_of_every_trial(data, tmp_path):
    result = sweep(data, tmp_path / "out", 'streams = "face"\nlr = [1e-3, 1e-2]\n', trials=2, top=1, seeds=1)
    assert result.best_streams == ("face",)
    config = tomllib.loads((result.retrained[0].result.folder / "seed-0" / "config.toml").read_text())
    assert config["features"].keys() == {"face"}


def test_streams_are_chosen_among_named_caches(data, tmp_path):
    (tmp_path / "space.toml").write_text('streams = ["audio", "face"]\n')
    files = (data / "train.csv", data / "valid.csv", tmp_path / "out", tmp_path / "space.toml")
    with pytest.raises(TrainSettingsError, match="chooses among named caches; give each as --cache NAME=PATH"):
        emi.sweep(data / "audio.zarr", *files)


def test_ids_of_a_stream_may_differ_from_those_of_the_labels(data, tmp_path):
    """In trials, in the fit of principal components, and in the runs of the best; asked for again, it resumes."""
    rng = np.random.default_rng(1)
    header = Header(fingerprint={"backbone": "shared", "dtype": "float32"}, dim=4, hop_seconds=0.1)
    with CacheWriter(tmp_path / "shared.zarr", header) as writer:
        for number in range(4):  # each stands for every fourth of the labelled clips
            writer.add(Clip(f"g{number}", rng.normal(size=(6, 4)).astype(np.float32), None, None, 0.6))
    for split in ("train", "valid"):
        lines = (data / f"{split}.csv").read_text().splitlines()
        named = [f"g{int(line[:5]) % 4}-{line}" for line in lines[1:]]
        (tmp_path / f"{split}.csv").write_text("\n".join([lines[0], *named, ""]))
    (tmp_path / "space.toml").write_text("lr = [1e-3, 1e-2]\nepochs = 1\nhead = 'mean'\n")
    files = (tmp_path / "train.csv", tmp_path / "valid.csv", tmp_path / "out", tmp_path / "space.toml")
    caches = {"shared": tmp_path / "shared.zarr"}
    how = {"ids": [r"shared=(g\d)-.*"], "pca": 2, "trials": 2, "jobs": 1, "top": 1, "seeds": 1}
    result = emi.sweep(caches, *files, **how)
    assert result.status.complete == 2
    config = tomllib.loads((result.retrained[0].result.folder / "seed-0" / "config.toml").read_text())
    assert config["data"]["ids"] == how["ids"]
    fitted = emi.open_cache(tmp_path / "out" / "cheap-shared.zarr").fingerprint["derived"]["fitted_on"]
    assert fitted["clips"] == 4
    assert emi.sweep(caches, *files, **how).nothing_to_do
    with pytest.raises(LabelError, match="10 of the 10 clips"):
        emi.sweep(caches, *files[:2], tmp_path / "other", files[3], trials=1, jobs=1)


def test_a_sweep_on_labels_per_frame_speaks_of_ccc(tmp_path):
    rng = np.random.default_rng(0)
    header = Header(fingerprint={"backbone": "made", "dtype": "float32"}, dim=3, hop_seconds=0.1)
    with CacheWriter(tmp_path / "features.zarr", header) as writer:
        for number in range(6):
            values = np.tanh(np.cumsum(rng.normal(size=(20, 2)), axis=0) / 4)
            frames = np.column_stack([values, np.ones(20)]) + rng.normal(size=(20, 3)) / 5
            writer.add(Clip(f"c{number}", frames.astype(np.float32), None, None, 2.0))
            place = tmp_path / ("train" if number < 4 else "valid")
            place.mkdir(exist_ok=True)
            rows = "\n".join(f"{v:.4f},{a:.4f}" for v, a in values[::2])
            (place / f"c{number}.txt").write_text(f"valence,arousal\n{rows}\n")
    (tmp_path / "space.toml").write_text('head = "gru"\nepochs = 2\nlr = [1e-2, 3e-2]\n[gru]\nhidden = 4\n')
    options = [
        f"--cache={tmp_path / 'features.zarr'}",
        f"--train={tmp_path / 'train'}",
        f"--valid={tmp_path / 'valid'}",
    ]
    options += [f"--space={tmp_path / 'space.toml'}", f"--out={tmp_path / 'out'}", "--label-fps=5", "--trials=2"]
    options += ["--jobs=1", "--top=1", "--seeds=1", "--label-range=-1,1"]
    done = CliRunner().invoke(app, ["sweep", *options])
    assert done.exit_code == 0, done.output
    assert "best validation CCC" in done.output
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mean validation CCC of its best epoch" in page
    assert "Pearson" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert "label_fps = 5" in (tmp_path / "out" / "best.toml").read_text()
