"""A run folder that is damaged, in use by another process, or from other clips is refused in one sentence."""

import fcntl
from pathlib import Path

import pytest

import emi
from cache import CacheWriter, open_cache
from train_head.errors import RunFolderError

QUICK = {"head": "mean", "epochs": 2}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def train(root: Path, out: Path, **settings):
    return emi.train_head(root / "features.zarr", root / "train.csv", root / "valid.csv", out, **(QUICK | settings))


def test_a_run_does_not_resume_when_the_cache_has_gained_clips(labelled, labelled_cache, tmp_path):
    target = tmp_path / "features.zarr"
    with open_cache(labelled_cache) as store:
        for part in (store.ids[:35], store.ids[35:]):
            with CacheWriter(target, store.header) as writer:
                for clip_id in part:
                    writer.add(store[clip_id])
            if part == store.ids[:35]:
                for name in ("train", "valid"):
                    (tmp_path / f"{name}.csv").write_bytes((labelled / f"{name}.csv").read_bytes())
                first = train(tmp_path, tmp_path / "run", skip_missing=True)
                assert first.skipped == 5
                assert train(tmp_path, tmp_path / "run", skip_missing=True).resumed_at == 2
    with pytest.raises(RunFolderError, match="which clips of --valid can be used"):
        train(tmp_path, tmp_path / "run", skip_missing=True)


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "config.toml"])
def test_a_damaged_run_says_which_file_and_what_to_do(labelled, labelled_cache, tmp_path, name):
    train(labelled, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\x00rubbish = [")
    with pytest.raises(RunFolderError, match=f"{name} is damaged.*restore it from a copy"):
        train(labelled, tmp_path / "run")


def test_missing_weights_of_the_best_epoch_are_an_error(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run")
    (tmp_path / "run" / "best.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"best\.safetensors is missing"):
        train(labelled, tmp_path / "run")


def test_two_processes_do_not_train_into_one_folder(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run")
    with (tmp_path / "run" / "config.toml").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunFolderError, match="another process trains into"):
            train(labelled, tmp_path / "run")
    assert train(labelled, tmp_path / "run").resumed_at == 2
