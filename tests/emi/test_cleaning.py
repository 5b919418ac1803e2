"""`emi clean` removes what can be made again, and nothing else; what it removed is made again."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import emi
from cache.errors import EmiError
from emi.cli import app
from tests.emi.test_prediction_from_faces import write

SETTINGS = {"head": "mean", "epochs": 2, "lr": 1e-2, "device": "cpu"}


def run(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(done.exception, EmiError):
        raise done.exception
    return done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def material(labelled, labelled_cache, tmp_path_factory):
    """A folder with a finished run, an unfinished one, a fine-tuned one with its audio, crops of faces and a cache."""
    folder = tmp_path_factory.mktemp("work")
    files = labelled / "train.csv", labelled / "valid.csv"
    emi.train_head(labelled_cache, *files, folder / "runs" / "head", **SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_head.training.trainer.Trainer.load_best", stop)
        with pytest.raises(KeyboardInterrupt):
            emi.train_head(labelled_cache, *files, folder / "runs" / "stopped", **SETTINGS)
    emi.finetune(labelled / "audio", *files, folder / "runs" / "ft", backbone="silero", **SETTINGS)
    emi.extract(labelled / "audio", folder / "features.zarr")
    (folder / "clips" / "a").mkdir(parents=True)
    write(folder / "clips" / "a" / "1.mkv", 1)
    write(folder / "clips" / "2.mkv", 2)
    (folder / "clips" / "broken.mkv").write_bytes(b"no video")
    run("faces", folder / "clips", "--out", folder / "faces")
    (folder / "faces" / "a" / "1" / "00099.png").write_bytes(b"mine")
    (folder / "faces" / "2" / "notes.txt").write_text("mine")
    return folder


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_can_be_made_again_is_removed_and_nothing_else(material, labelled, labelled_cache):
    before = contents(material)
    listed = run("clean", material)
    assert contents(material) == before
    assert f"{material / 'runs' / 'ft-audio'}: decoded audio, which `emi finetune` makes again: " in listed
    assert f"{material / 'faces'}: crops of faces of 2 clips, which `emi faces` makes again: " in listed
    assert f"{material / 'runs' / 'head'}: last.pt of a finished run" in listed
    assert listed.count("last.pt") == 1
    assert "nothing was removed: --yes removes these files" in listed

    assert "removed " in run("clean", material, material / "runs", "--yes")
    after = contents(material)
    gone = before.keys() - after.keys()
    assert {name: before[name] for name in after} == after
    assert {name for name in gone if name.startswith("runs/")} == {
        "runs/head/last.pt",
        *(name for name in before if name.startswith("runs/ft-audio/emi-audio")),
    }
    crops = {name for name in gone if name.startswith("faces/")}
    assert crops == {name for name in before if name.startswith("faces/")} - {
        "faces/a/1/00099.png",
        "faces/2/notes.txt",
    }
    assert gone == {name for name in gone if name.startswith(("runs/", "faces/"))}
    assert not (material / "runs" / "ft-audio").exists()
    assert run("clean", material).startswith("nothing to do")

    files = labelled / "train.csv", labelled / "valid.csv"
    again = emi.train_head(labelled_cache, *files, material / "runs" / "head", **SETTINGS)
    assert again.resumed_at == len(again.history) == 2
    emi.finetune(labelled / "audio", *files, material / "runs" / "ft", backbone="silero", **SETTINGS)
    (material / "faces" / "a" / "1" / "00099.png").rename(material / "mine.png")  # emi writes no crops beside it
    run("faces", material / "clips", "--out", material / "faces")
    made = contents(material)
    assert {name for name in gone if name not in made and "emi-audio-" not in name} == {"runs/head/last.pt"}
    assert {name: made[name] for name in crops} == {name: before[name] for name in crops}
    assert {name: made[name] for name in after if name.endswith(("csv", "safetensors", "jsonl"))} == {
        name: content for name, content in after.items() if name.endswith(("csv", "safetensors", "jsonl"))
    }


def test_a_run_whose_state_was_removed_before_it_was_finished_is_trained_anew(labelled, labelled_cache, tmp_path):
    files = labelled / "train.csv", labelled / "valid.csv"
    emi.train_head(labelled_cache, *files, tmp_path / "run", **SETTINGS)
    (tmp_path / "run" / "last.pt").unlink()
    (tmp_path / "run" / "README.md").unlink()
    assert emi.train_head(labelled_cache, *files, tmp_path / "run", **SETTINGS).resumed_at == 0


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EmiError, match=r"gone is no folder; name folders of runs"):
        run("clean", tmp_path / "gone")


def test_nothing_is_left_of_crops_of_which_some_failed(tmp_path):
    write_clips(tmp_path)
    assert (tmp_path / "faces" / "failures.csv").is_file()
    run("clean", tmp_path / "faces", "--yes")
    assert not (tmp_path / "faces").exists()


def test_failures_of_a_cache_beside_the_crops_stay(tmp_path):
    write_clips(tmp_path)
    emi.extract(tmp_path / "clips", tmp_path / "faces" / "f.zarr", backbone="mtcnn")
    failures = tmp_path / "faces" / "failures.csv"
    before = failures.read_bytes()
    assert b"f.zarr" in before
    run("clean", tmp_path / "faces", "--yes")
    assert failures.read_bytes() == before


def write_clips(folder):
    """Write a video, a file that is none, and the crops of both."""
    (folder / "clips").mkdir()
    write(folder / "clips" / "1.mkv", 1)
    (folder / "clips" / "broken.mkv").write_bytes(b"no video")
    run("faces", folder / "clips", "--out", folder / "faces")
