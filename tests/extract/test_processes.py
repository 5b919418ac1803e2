"""Several processes on one machine, into one cache."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import emi
import extract.plan
import extract.processes
from extract import run
from extract.errors import ExtractSettingsError
from extract.settings import ExtractSettings


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)


def test_two_processes_make_the_cache_of_one(tmp_path, clips, read_cache, small_windows):
    emi.extract(clips, tmp_path / "one.zarr", dtype="float32")
    seen = []
    summary = run.extract(
        clips,
        tmp_path / "two.zarr",
        ExtractSettings(dtype="float32", processes=2),
        on_progress=lambda *state: seen.append(state),
    )
    assert (summary.written, summary.present, summary.notes) == (10, 0, [])
    assert [done for done, _, _ in seen] == list(range(1, 11))
    assert read_cache(tmp_path / "two.zarr") == read_cache(tmp_path / "one.zarr")
    assert emi.extract(clips, tmp_path / "two.zarr", dtype="float32", processes=2).present == 10


def test_failures_of_all_processes_are_listed_once(tmp_path, clips, small_windows):
    damaged = shutil.copytree(clips, tmp_path / "damaged")
    for name in ("00001", "00008"):
        (damaged / f"{name}.wav").write_bytes(b"no audio")
    summary = emi.extract(damaged, tmp_path / "f.zarr", processes=2)
    assert (summary.written, sorted(f.id for f in summary.failures)) == (8, ["00001", "00008"])
    assert len(Path(summary.failures_file).read_text().splitlines()) == 3


def test_a_process_that_is_killed_is_named_and_its_share_done_again(tmp_path, clips, read_cache, small_windows):
    emi.extract(clips, tmp_path / "one.zarr", dtype="float32")
    killed = []

    def kill_one(done, total, seconds):
        if done == 2 and not killed:
            victim = extract.processes.multiprocessing.active_children()[0]
            killed.append(victim.pid)
            os.kill(victim.pid, signal.SIGKILL)

    settings = ExtractSettings(dtype="float32", processes=2)
    summary = run.extract(clips, tmp_path / "two.zarr", settings, on_progress=kill_one)
    assert killed
    assert read_cache(tmp_path / "two.zarr") == read_cache(tmp_path / "one.zarr")
    if summary.notes:  # it may have sent its last word before it died
        assert "was killed by signal 9" in summary.notes[0]


def test_an_interrupted_parent_ends_its_processes_and_the_rest_is_done_later(
    tmp_path, clips, read_cache, small_windows
):
    def interrupt(done, total, seconds):
        raise KeyboardInterrupt

    settings = ExtractSettings(dtype="float32", processes=2)
    with pytest.raises(KeyboardInterrupt):
        run.extract(clips, tmp_path / "two.zarr", settings, on_progress=interrupt)
    assert not extract.processes.multiprocessing.active_children()
    emi.extract(clips, tmp_path / "two.zarr", dtype="float32")
    emi.extract(clips, tmp_path / "one.zarr", dtype="float32")
    assert read_cache(tmp_path / "two.zarr") == read_cache(tmp_path / "one.zarr")


def test_an_error_of_a_process_is_raised_by_the_parent(tmp_path, clips, tiny, small_windows):
    tiny.save_audeering(tmp_path / "model")
    settings = {"backbone": str(tmp_path / "model"), "processes": 2}
    emi.extract(clips, tmp_path / "f.zarr", **settings, shard="1/5")
    weights = next((tmp_path / "model").glob("*.bin"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(emi.EmiError):
        emi.extract(clips, tmp_path / "f.zarr", **settings)


def test_an_hdf5_file_takes_one_process(tmp_path, clips):
    with pytest.raises(ExtractSettingsError, match="one process at a time writes an HDF5 file"):
        emi.extract(clips, tmp_path / "f.h5", processes=2)
    assert not (tmp_path / "f.h5").exists()
