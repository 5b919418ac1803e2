"""A small checkpoint with audEERING's head, and the settings under which runs of it are compared."""

from pathlib import Path

import pytest

import emi
from cache.derive.derived import derive

EXACT = {"hidden": 8, "epochs": 2, "lr": 3e-3, "dropout": 0.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wav2vec 2.0 of audEERING's shape, 12 layers of 32 numbers, with its regression head."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    tiny.save_audeering(folder)
    return folder


LACKING = {"00003", "00017", "00030", "00036"}
"""Clips that the cached stream lacks, of both splits."""


@pytest.fixture(scope="session")
def slow(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for a second stream: derived features of silero, with a fitted transform; some clips have none."""
    folder = tmp_path_factory.mktemp("slow")
    clips = [path.absolute() for path in sorted((labelled / "audio").iterdir()) if path.stem not in LACKING]
    (folder / "clips.txt").write_text("".join(f"{path}\n" for path in clips))
    emi.extract(folder / "clips.txt", folder / "silero.zarr", media_root=labelled / "audio")
    ids = [f"{i:05d}" for i in range(28)]  # of the training clips
    derive(folder / "silero.zarr", folder / "slow.zarr", pool=3, pca=8, train_ids=ids, skip_missing=True)
    return folder / "slow.zarr"


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded audio that the runs of a session share."""
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture(scope="session")
def tune(labelled: Path, checkpoint: Path, audio: Path):
    """`emi.finetune` on the labelled clips, with settings that leave nothing to chance."""

    def tune(out: Path, backbone: Path | str = checkpoint, **settings):
        files = (labelled / "audio", labelled / "train.csv", labelled / "valid.csv")
        return emi.finetune(*files, out, backbone=str(backbone), audio=audio, **EXACT | settings)

    return tune
