"""What a hostile review of training found: each is refused or told in one sentence, and nothing is lost."""

import csv
import fcntl
from pathlib import Path

import numpy as np
import pytest

import emi
from cache import CacheWriter, open_cache
from train_head.data.label_format import label_format
from train_head.data.labels import read_labels
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.training.settings import resolve_settings

QUICK = {"head": "mean", "epochs": 2}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def train(root: Path, out: Path, **settings):
    return emi.train_head(root / "features.zarr", root / "train.csv", root / "valid.csv", out, **(QUICK | settings))


def test_clips_that_are_trained_and_validated_on_are_told_on_the_card(labelled, labelled_cache, tmp_path):
    lines = (labelled / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "valid.csv").write_text((labelled / "valid.csv").read_text() + "".join(lines[1:4]))
    emi.train_head(labelled_cache, labelled / "train.csv", tmp_path / "valid.csv", tmp_path / "run", **QUICK)
    said = "3 of the 15 validation clips are training clips as well"
    assert said in " ".join((tmp_path / "run" / "README.md").read_text().split())
    train(labelled, tmp_path / "plain")
    assert "training clips as well" not in (tmp_path / "plain" / "README.md").read_text()


def test_a_run_does_not_go_on_with_clips_that_the_cache_has_got_since(labelled, labelled_cache, tmp_path):
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


def test_folds_of_a_part_of_the_clips_can_be_scored_with_the_labels_beside_them(labelled, labelled_cache, tmp_path):
    from train_head.evaluation.scoring import read_pair

    text = (labelled / "train.csv").read_text() + "gone,0.5,0.5\n"
    (tmp_path / "train.csv").write_text(text)
    emi.train_head(labelled_cache, tmp_path / "train.csv", out=tmp_path / "run", folds=2, skip_missing=True, **QUICK)
    assert read_pair(tmp_path / "run" / "predictions_folds.csv", tmp_path / "run" / "labels_folds.csv").report()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 1, "loss": "ccc"}, "ccc compares the clips of a batch"),
        ({"batch_size": 1, "loss": "0.5*mse + 0.5*pearson"}, "pearson compares the clips of a batch"),
        ({"seed": -1}, "seed must not be negative"),
        ({"seed": 2**40}, "seed must be below"),
        ({"warmup_epochs": float("nan")}, "warmup_epochs must be finite"),
        ({"lr": float("inf")}, "lr must be finite"),
        ({"weight_decay": float("inf")}, "weight_decay must be finite"),
        ({"augment": 5}, "augment must be a table"),
        ({"head": ["mean"]}, "head must be a str"),
        ({"head": "lstm", "global_vector": 3}, "global_vector must be true or false"),
        ({"head": "lstm", "global_vector": "False"}, "global_vector must be true or false"),
        ({"head": "lstm", "hidden": 4.5}, "hidden must be a whole number"),
        ({"head": "lstm", "hidden": True}, "hidden must be a whole number"),
        ({"head": "lstm", "layers": 2.0}, "layers must be a whole number"),
        ({"head": "lstm", "dropout": "x"}, "dropout must lie in"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(settings, said):
    with pytest.raises(TrainSettingsError, match=said):
        resolve_settings(**settings)


def test_a_head_that_is_no_table_is_one_sentence(tmp_path):
    (tmp_path / "config.toml").write_text("lstm = 5\n")
    with pytest.raises(TrainSettingsError, match="lstm must be a table"):
        resolve_settings(tmp_path / "config.toml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Filename,Joy\ncaf\u00e9,0.5\n".encode("latin-1"), "is not in UTF-8"),
        ("Filename,Joy\na,0.5\n".encode("utf-16-be"), "is not in UTF-8"),
        (b'Filename,Joy\n"a,0.5\n' + b"x" * 200_000, "does a quote never end"),
        (b"Filename,Joy\na,0_1\n", "'0_1' is not a number"),
        ("Filename,Joy\na,\u0660.\u0665\n".encode(), "is not a number"),
    ],
)
def test_a_label_file_of_another_kind_is_one_sentence(tmp_path, content, said):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(LabelError, match=said):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize("number", ["0.5", " .5", "5e-1", "+0.5", "5E-1", "0.50"])
def test_every_plain_way_to_write_a_number_is_read(tmp_path, number):
    (tmp_path / "labels.csv").write_text(f"Filename,Joy\na,{number}\n")
    assert read_labels(tmp_path / "labels.csv").values.item() == np.float32(0.5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_is_none_is_refused(labelled, scale):
    with pytest.raises(LabelError, match="must be above 0"):
        read_labels(labelled / "train.csv", label_format(label_scale=scale))


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors", "config.toml"])
def test_a_damaged_run_says_which_file_and_what_to_do(labelled, labelled_cache, tmp_path, name):
    train(labelled, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"\x00rubbish = [")
    with pytest.raises(RunFolderError, match=f"{name} is damaged.*restore it from a copy"):
        train(labelled, tmp_path / "run")


def test_a_missing_best_epoch_is_told(labelled, labelled_cache, tmp_path):
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


def test_an_empty_group_of_the_test_file_is_what_is_told(labelled, labelled_cache, tmp_path):
    for name in ("train", "valid", "test"):
        with (labelled / f"{'valid' if name == 'test' else name}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        speakers = ["speaker", *(f"{name}{i % 3}" for i in range(len(rows) - 1))]
        speakers[3] = "" if name == "test" else speakers[3]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([*row, speaker] for row, speaker in zip(rows, speakers, strict=True))
    files = (labelled_cache, tmp_path / "train.csv", tmp_path / "valid.csv", tmp_path / "run")
    with pytest.raises(LabelError, match="line 4, speaker: the group is empty"):
        emi.train_head(*files, test=tmp_path / "test.csv", group_by="speaker", **QUICK)
