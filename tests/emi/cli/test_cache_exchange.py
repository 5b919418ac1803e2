"""`emi cache import` and `emi cache export` as a user meets them."""

import csv
import os
import pickle
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from cache import EmiError, open_cache
from emi.cli.cache import export as cache_export
from emi.cli.cache import import_ as cache_import
from emi.cli.cache import remove as cache_remove

APP = typer.Typer(rich_markup_mode=None)
APP.command("import")(cache_import.import_)
APP.command("export")(cache_export.export)
APP.command("remove")(cache_remove.remove)


def run(*arguments: object, code: int = 0) -> str:
    """What a command says on both streams; its error is raised."""
    result = CliRunner().invoke(APP, list(map(str, arguments)))
    if isinstance(result.exception, EmiError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def folder(tmp_path):
    """Features as they come with Hume-Vidmimic2."""
    root = tmp_path / "wav2vec2"
    root.mkdir()
    for number in range(4):
        frames = np.random.default_rng(number).normal(size=(50 * (number + 1), 8)).astype(np.float32)
        (root / f"{number:05d}.pkl").write_bytes(pickle.dumps(frames))
    (root / "Thumbs.db").write_bytes(b"thumbs")
    return root


@pytest.mark.parametrize("command", ["import", "export", "remove"])
def test_the_help_has_an_example(command):
    text = " ".join(run(command, "--help").split())
    assert f"Example: emi cache {command} " in text


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_features_go_in_and_come_out(folder, tmp_path, suffix):
    cache, out = tmp_path / f"f{suffix}", tmp_path / "f.parquet"
    importing = ("import", folder, cache, "--hop-seconds", 0.02)
    assert f"wrote 4 clips (0.2 min, frames every 20 ms) to {cache}" in run(*importing)
    assert f"nothing to do: all 4 clips are in {cache}, and unchanged" in run(*importing)
    with open_cache(cache) as store:
        assert store.fingerprint["backbone"] == "import:wav2vec2"
        assert store["00003"].seconds == 4
        frames = [store[clip_id].frames for clip_id in store]
    exporting = ("export", cache, out, "--to", "parquet")
    assert f"wrote 4 clips to {out}" in run(*exporting)
    assert f"nothing to do: all 4 clips are in {out}" in run(*exporting)
    rows = pq.read_table(out).to_pylist()
    assert [np.array(row["frames"], np.float16).tobytes() for row in rows] == [f.tobytes() for f in frames]


@pytest.mark.parametrize("kind", ["npz", "npy", "datasets"])
def test_the_clips_of_a_list_come_out(folder, tmp_path, kind):
    cache, ids = tmp_path / "f.h5", tmp_path / "ids.txt"
    run("import", folder, cache, "--hop-seconds", 0.02, "--name", "mine", "--dtype", "float32")
    ids.write_bytes("\ufeff00002\r\n\r\n1\r\n".encode())
    assert "wrote 2 clips" in run("export", cache, tmp_path / "out", "--to", kind, "--ids", ids)
    with open_cache(cache) as store:
        assert store.fingerprint == {"backbone": "import:mine", "hop_seconds": 0.02, "dtype": "float32"}
        wanted = {"00001": store["00001"].frames, "00002": store["00002"].frames}
    if kind == "npz":
        assert {f.stem: np.load(f)["frames"].tobytes() for f in (tmp_path / "out").glob("*.npz")} == {
            clip_id: frames.tobytes() for clip_id, frames in wanted.items()
        }
    elif kind == "npy":
        assert (tmp_path / "out" / "ids.txt").read_text().split() == ["00002", "00001"]
        frames = np.load(tmp_path / "out" / "frames.npy", mmap_mode="r")
        assert frames.tobytes() == np.concatenate([wanted["00002"], wanted["00001"]]).tobytes()


def test_files_that_cannot_be_imported_are_listed_and_the_exit_code_is_1(folder, tmp_path):
    canary, cache = tmp_path / "canary", tmp_path / "f.zarr"
    (folder / "evil.pkl").write_bytes(b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(canary))
    (folder / "00009.npy").write_bytes(b"")
    arguments = ("import", folder, cache, "--hop-seconds", 0.02)
    output = run(*arguments, code=1)
    assert "wrote 4 clips" in output
    assert f"2 files could not be imported (also in {tmp_path / 'failures.csv'})" in output
    assert f"{folder / '00009.npy'}: is empty (0 bytes)" in output
    assert f"{folder / 'evil.pkl'}: it asks for os.system" in output
    with (tmp_path / "failures.csv").open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["00009", "evil"]
    assert "nothing to do" not in run(*arguments, code=1)
    (folder / "evil.pkl").unlink()
    (folder / "00009.npy").unlink()
    (tmp_path / "failures.csv").unlink()
    assert "nothing to do" in run(*arguments)
    assert not canary.exists()


def test_many_failures_are_counted(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(25):
        (folder / f"{number}.npy").write_bytes(b"")
    output = run("import", folder, tmp_path / "new" / "f.zarr", "--hop-seconds", 1, code=1)
    assert "25 files could not be imported" in output
    assert "… and 5 more" in output


def test_wrong_options_are_told_in_one_sentence(folder, tmp_path):
    cache = tmp_path / "f.zarr"
    with pytest.raises(EmiError, match="--hop must be above zero"):
        run("import", folder, cache, "--hop-seconds", 0)
    with pytest.raises(EmiError, match="--dtype must be one of"):
        run("import", folder, cache, "--hop-seconds", 1, "--dtype", "int8")
    with pytest.raises(EmiError, match="there is no feature cache"):
        run("export", cache, tmp_path / "out", "--to", "npz")
    run("import", folder, cache, "--hop-seconds", 1)
    with pytest.raises(EmiError, match="--to must be one of npz, npy, parquet, datasets"):
        run("export", cache, tmp_path / "out", "--to", "csv")
    with pytest.raises(EmiError, match="cannot be read as UTF-8 text"):
        run("export", cache, tmp_path / "out", "--to", "npz", "--ids", tmp_path / "none.txt")
    (tmp_path / "ids.txt").write_text("00001\n77\n")
    with pytest.raises(EmiError, match="no clip '77'"):
        run("export", cache, tmp_path / "out", "--to", "npz", "--ids", tmp_path / "ids.txt")
    assert not (tmp_path / "out").exists()


def test_neither_command_needs_torch_nor_arrow_for_numpy(folder, tmp_path):
    code = f"""
import sys
from cache.exchange.importing import import_features
from cache.exchange.exporting import export
from cache.reader import open_cache
import_features({str(folder)!r}, {str(tmp_path / "f.h5")!r}, hop_seconds=0.02)
with open_cache({str(tmp_path / "f.h5")!r}) as store:
    export(store, {str(tmp_path / "out")!r}, "npz")
print(sorted({{"torch", "pyarrow", "datasets", "pandas"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_the_hop_has_two_names_and_the_modality_is_kept(folder, tmp_path):
    cache = tmp_path / "f.zarr"
    run("import", folder, cache, "--hop", 0.1, "--modality", "face", "--valid", "nonzero")
    assert "nothing to do" in run(
        "import", folder, cache, "--hop-seconds", 0.1, "--modality", "face", "--valid", "nonzero"
    )
    with open_cache(cache) as store:
        assert (store.hop_seconds, store.header.modality, store.header.optional) == (0.1, "face", ("valid",))


def test_csvs_are_imported_and_it_is_told_what_was_chosen(tmp_path):
    folder, cache = tmp_path / "openface", tmp_path / "faces.zarr"
    folder.mkdir()
    header = "frame, face_id, timestamp, confidence, success, pose_Tx, AU01_r\n"
    (folder / "1.csv").write_text(
        header + "1, 0, 0.0, 0.9, 1, 2, 3\n1, 1, 0.0, 0.9, 1, 4, 5\n2, 1, 30.0, 0.9, 1, 6, 7\n"
    )
    (folder / "2.csv").write_text(header)
    output = run("import", folder, cache, "--modality", "face", "--columns", "^AU")
    assert "wrote 2 clips (1.0 min, frames with times of their own)" in output
    assert "1 clips have no frames: nothing was found in them" in output
    assert "1 clips show several people; the one who is found in most frames was taken:\n  00001: 2 people" in output
    with open_cache(cache) as store:
        assert store["00001"].frames.tolist() == [[5], [7]]


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_clips_are_removed_by_id_and_by_list(folder, tmp_path, suffix):
    cache, ids = tmp_path / f"f{suffix}", tmp_path / "withdrawn.txt"
    run("import", folder, cache)
    ids.write_text("0.mp3\n\n2\n2\n")
    output = run("remove", cache, "--ids", ids, "3")
    assert f"removed 3 clips from {cache}, which holds 1 now:\n  00000\n  00002\n  00003\n" in output
    assert "not touched: the media" in output
    with open_cache(cache) as store:
        assert list(store) == ["00001"]
    files = [cache] if cache.is_file() else [file for file in cache.rglob("*") if file.is_file()]
    content = b"".join(file.read_bytes() for file in files)
    assert b"00001" in content
    assert not [name for name in (b"00000\0", b"00002", b"00003") if name in content]
    output = run("remove", cache, "--ids", "x", "--ids", "1")
    assert "removed 1 clips" in output
    assert f"1 ids are not in {cache} (removed before, or misspelt):\n  x" in output
    again = run("remove", cache, "--ids", "1")
    assert f"nothing to do: {cache} holds none of these clips" in again
    assert f"1 ids are not in {cache} (removed before, or misspelt):\n  1" in again
    with pytest.raises(EmiError, match="there is no feature cache"):
        run("remove", tmp_path / f"none{suffix}", "--ids", "1")
