"""Clips that lack some of the streams are counted, and refused or left out where a stream is required."""

import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from emi.cli import app
from train_head.errors import LabelError, RunFolderError

SENTENCE = "6 of 8 clips of train, 3 of 4 clips of valid lack the stream 'face', for which a learned vector stands"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`audio` has all twelve clips; `face` has two of the eight for training, and one of the four for validation."""
    folder, rng = tmp_path_factory.mktemp("missing"), np.random.default_rng(0)
    clips = [f"{i:05d}" for i in range(12)]
    for name, held in (("audio", clips), ("face", ["00000", "00003", "00009"])):
        header = Header(fingerprint={"backbone": name, "dtype": "float32"}, dim=3, hop_seconds=0.1)
        with CacheWriter(folder / f"{name}.zarr", header) as writer:
            for clip in held:
                writer.add(Clip(clip, rng.normal(size=(5, 3)).astype(np.float32), None, None, 0.5))
    for split, part in (("train", clips[:8]), ("valid", clips[8:])):
        lines = [f"{clip},{rng.uniform():.3f}" for clip in part]
        (folder / f"{split}.csv").write_text("Filename,Joy\n" + "\n".join(lines) + "\n")
    return folder


def command(data, out, *more, name="train-head"):
    caches = [f"--cache={stream}={data / stream}.zarr" for stream in ("audio", "face")]
    files = ("--train", data / "train.csv", "--valid", data / "valid.csv", "--out", out)
    return CliRunner().invoke(app, [str(part) for part in (name, *caches, *files, *more)])


SMALL = ("--hidden", "4", "--epochs", "1")


def test_the_clips_that_lack_a_stream_are_counted_before_training_and_in_the_cards(data, tmp_path):
    done = command(data, tmp_path / "run", *SMALL)
    assert done.exit_code == 0, done.output
    assert done.output.count(SENTENCE) == 1
    assert done.output.index(SENTENCE) < done.output.index("epoch")
    assert f"- {SENTENCE}.\n" in (tmp_path / "run" / "README.md").read_text()
    lacking = [("train", i) for i in (1, 2, 4, 5, 6, 7)] + [("valid", i) for i in (8, 10, 11)]
    lines = ["split,Filename,stream", *(f"{split},{i:05d},face" for split, i in lacking), ""]
    assert (tmp_path / "run" / "missing_streams.csv").read_text() == "\n".join(lines)
    done = command(data, tmp_path / "seeds", *SMALL, "--seeds", "2")
    assert done.output.index(SENTENCE) < done.output.index("seed-0")
    assert f"{SENTENCE}." in (tmp_path / "seeds" / "README.md").read_text()


def test_an_ablation_counts_them_too(data, tmp_path):
    (tmp_path / "rows.toml").write_text('[[row]]\nname = "a"\nhead = "mean"\nfusion = {hidden = 4}\n')
    options = ("--rows", tmp_path / "rows.toml", "--seeds", "1", "--epochs", "1")
    done = command(data, tmp_path / "rows", *options, name="ablate")
    assert done.output.index(SENTENCE) < done.output.index("seed-0")
    done = command(data, tmp_path / "all", *options, "--require", "face", name="ablate")
    assert isinstance(done.exception, LabelError)


def test_clips_that_lack_a_required_stream_are_refused_or_dropped(data, tmp_path):
    done = command(data, tmp_path / "run", *SMALL, "--require", "face")
    assert isinstance(done.exception, LabelError)
    assert "6 of the 8 clips" in str(done.exception)
    assert not (tmp_path / "run").exists()
    done = command(data, tmp_path / "run", *SMALL, "--require", "face", "--skip-missing")
    assert "9 labelled clips were left out because no cache holds them, or they lack face" in done.output
    rows = (tmp_path / "run" / "predictions_valid.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Filename", "00009"]
    caches = {name: data / f"{name}.zarr" for name in ("audio", "face")}
    files = (data / "train.csv", data / "valid.csv", tmp_path / "run")
    again = emi.train_head(caches, *files, skip_missing=True, require=("face",), hidden=4, epochs=1)
    assert again.resumed_at == 1
    assert not (tmp_path / "run" / "missing_streams.csv").exists()
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["data"]["require"] == ["face"]
    with pytest.raises(RunFolderError, match=r"--require \(there \['face'\], now none\)"):
        emi.train_head(caches, *files, skip_missing=True, hidden=4, epochs=1)
    with pytest.raises(RunFolderError, match=r"can be used \(--skip-missing, --require\)"):
        emi.train_head(caches, *files, hidden=4, epochs=1)


@pytest.mark.parametrize("frames", [False, True])
def test_a_clip_in_which_nothing_was_found_lacks_a_required_stream(data, tmp_path, frames):
    """It is stored as one row that is not valid."""
    rng = np.random.default_rng(0)
    header = Header(fingerprint={"backbone": "face", "dtype": "float32"}, dim=3, hop_seconds=0.1, optional=("valid",))
    with CacheWriter(tmp_path / "face.zarr", header) as writer:
        for i in range(12):
            found = i not in (2, 9)
            rows = rng.normal(size=(5, 3)).astype(np.float32) if found else np.zeros((1, 3), np.float32)
            writer.add(Clip(f"{i:05d}", rows, None, None, 0.5, valid=np.full(len(rows), found)))
    caches = {"audio": data / "audio.zarr", "face": tmp_path / "face.zarr"}
    files = [data / "train.csv", data / "valid.csv"]
    if frames:
        for split, part in (("train", range(8)), ("valid", range(8, 12))):
            (tmp_path / split).mkdir()
            for i in part:
                (tmp_path / split / f"{i:05d}.txt").write_text("Joy\n" + "".join(f"{v:.3f}\n" for v in rng.random(5)))
        files = [tmp_path / "train", tmp_path / "valid"]
    how = {"head": "gru", "hidden": 4, "epochs": 1, "label_fps": 10.0}
    with pytest.raises(LabelError, match=r"nothing was found of the required stream 'face' in 1 of the 8 .*: 00002\)"):
        emi.train_head(caches, *files, tmp_path / "run", require=("face",), **how)
    run = emi.train_head(caches, *files, tmp_path / "run", require=("face",), skip_missing=True, **how)
    assert run.skipped == 2
    assert len(run.predictions["valid"]) == (15 if frames else 3)


@pytest.mark.usefixtures("warm_children")
def test_a_sweep_counts_them_and_leaves_out_those_that_lack_a_required_stream(data, tmp_path):
    (tmp_path / "space.toml").write_text("lr = [1e-3, 1e-2]\nepochs = 1\n")
    options = ("--space", tmp_path / "space.toml", "--trials", "1", "--jobs", "1", "--top", "0", "--set", "hidden=4")
    done = command(data, tmp_path / "out", *options, name="sweep")
    assert done.output.count(SENTENCE) == 1, done.output
    done = command(data, tmp_path / "out", *options, "--require", "face", "--skip-missing", name="sweep")
    assert isinstance(done.exception, RunFolderError)
    assert "which clips of --train the cache holds (--skip-missing, --require)" in str(done.exception)
