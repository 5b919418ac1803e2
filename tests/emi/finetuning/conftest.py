"""A small checkpoint with audEERING's head, and the settings under which runs of it are compared."""

from pathlib import Path

import pytest

import emi

EXACT = {"hidden": 8, "epochs": 2, "lr": 3e-3, "dropout": 0.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="session")
def checkpoint(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """wav2vec 2.0 of audEERING's shape, 12 layers of 32 numbers, with its regression head."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    tiny.save_audeering(folder)
    return folder


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
