"""Several processes on one machine, into one cache."""

import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import cache.system.child_process
import emi
import extract.clips
import extract.modality.decoding
import extract.plan
import extract.workers.processes
from cache.system.child_process import start_child
from extract import run
from extract.audio.media import read
from extract.errors import ExtractProcessError, ExtractSettingsError, MediaError
from extract.modality.decoding import Decoder
from extract.settings import ExtractSettings
from extract.sources import Source


@pytest.fixture
def small_windows(monkeypatch, warm_children):
    """Work for several processes, which start at once."""
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)


def test_two_processes_make_the_same_cache_as_one(tmp_path, clips, read_cache, small_windows):
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


def test_a_checkpoint_gives_the_same_bytes_whatever_the_number_of_threads(tmp_path, clips, tiny, read_cache):
    import torch

    tiny.save_audeering(tmp_path / "model")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            emi.extract(clips, tmp_path / f"{threads}.zarr", backbone=str(tmp_path / "model"), dtype="float32")
    finally:
        torch.set_num_threads(before)
    assert read_cache(tmp_path / "1.zarr") == read_cache(tmp_path / "2.zarr") == read_cache(tmp_path / "5.zarr")


def test_failures_of_all_processes_are_listed_once(tmp_path, clips, small_windows):
    damaged = shutil.copytree(clips, tmp_path / "damaged")
    for name in ("00001", "00008"):
        (damaged / f"{name}.wav").write_bytes(b"no audio")
    summary = emi.extract(damaged, tmp_path / "f.zarr", processes=2)
    assert (summary.written, sorted(f.id for f in summary.failures)) == (8, ["00001", "00008"])
    assert len(Path(summary.failures_file).read_text().splitlines()) == 3


@pytest.fixture
def started(monkeypatch):
    """Every child that `extract.workers.processes` starts, as (process, connection)."""
    children = []

    def start(module, environment=None):
        children.append(start_child(module, environment))
        return children[-1]

    monkeypatch.setattr(extract.workers.processes, "start_child", start)
    return children


def test_a_process_that_is_killed_is_named_and_its_share_done_again(
    tmp_path, clips, read_cache, small_windows, started
):
    emi.extract(clips, tmp_path / "one.zarr", dtype="float32")
    killed = []

    def kill_one(done, total, seconds):
        if done == 2 and not killed:
            killed.append(started[0][0].pid)
            os.kill(killed[0], signal.SIGKILL)

    settings = ExtractSettings(dtype="float32", processes=2)
    summary = run.extract(clips, tmp_path / "two.zarr", settings, on_progress=kill_one)
    assert killed
    assert read_cache(tmp_path / "two.zarr") == read_cache(tmp_path / "one.zarr")
    if summary.notes:  # it may have sent its last word before it died
        assert "was killed by signal 9" in summary.notes[0]


def test_an_interrupted_parent_ends_its_processes_and_the_rest_is_done_later(
    tmp_path, clips, read_cache, small_windows, started
):
    def interrupt(done, total, seconds):
        raise KeyboardInterrupt

    settings = ExtractSettings(dtype="float32", processes=2)
    with pytest.raises(KeyboardInterrupt):
        run.extract(clips, tmp_path / "two.zarr", settings, on_progress=interrupt)
    assert len(started) == 2
    assert all(child.poll() is not None for child, _ in started)
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
    with pytest.raises(ExtractSettingsError, match="an HDF5 file is written by one process at a time"):
        emi.extract(clips, tmp_path / "f.h5", processes=2)
    assert not (tmp_path / "f.h5").exists()


def test_a_decoding_process_reads_the_same_samples_and_survives_bad_files(clips, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    decoder = Decoder()
    try:
        for path in sorted(clips.glob("*.wav")):
            ours, expected = decoder.read(Source(path.stem, path), 0.5), read(path, 0.5)
            np.testing.assert_array_equal(ours.samples, expected.samples)
            assert (ours.rate, ours.seconds) == (expected.rate, expected.seconds)
        with pytest.raises(MediaError, match="not a media file"):
            decoder.read(Source("text", tmp_path / "text.wav"), 0.5)
        assert decoder.read(Source(path.stem, path), 0.5).seconds == expected.seconds
    finally:
        decoder.close()


def test_a_decoding_process_that_dies_is_reported_with_its_clip_and_replaced(clips):
    decoder = Decoder()
    decoder.read(Source("00001", clips / "00001.wav"), 0.5)
    os.kill(decoder._child.pid, signal.SIGSTOP)  # so that it dies with this clip in hand
    threading.Timer(0.5, decoder._child.kill).start()
    try:
        with pytest.raises(MediaError, match="being decoded when its process was killed by signal 9"):
            decoder.read(Source("00001", clips / "00001.wav"), 0.5)
        assert decoder.read(Source("00001", clips / "00001.wav"), 0.5).seconds == pytest.approx(0.3)
    finally:
        decoder.close()


def test_killed_decoding_processes_lose_only_their_current_clips(tmp_path, clips, read_cache, monkeypatch):
    monkeypatch.setattr(extract.clips, "PROCESSES_FROM", 1)
    monkeypatch.setattr(Decoder, "ready", lambda decoder: decoder._await_start() or True)
    started = []
    monkeypatch.setattr(
        extract.modality.decoding, "start_child", lambda name: started.append(start_child(name)) or started[-1]
    )
    emi.extract(clips, tmp_path / "whole.zarr", dtype="float32", workers=2)
    assert len(started) == 2
    assert all(child.poll() is not None for child, _ in started)  # none outlives its run

    original = Decoder.read

    def dies_over_one(decoder, source, max_seconds, options):
        if source.id == "00004":
            os.kill(decoder._child.pid, signal.SIGSTOP)
            threading.Timer(0.3, decoder._child.kill).start()
        return original(decoder, source, max_seconds, options)

    monkeypatch.setattr(Decoder, "read", dies_over_one)
    summary = emi.extract(clips, tmp_path / "f.zarr", dtype="float32", workers=2)
    (failure,) = summary.failures
    assert (failure.id, summary.written) == ("00004", 9)
    assert "killed by signal 9" in failure.reason
    monkeypatch.setattr(Decoder, "read", original)
    assert emi.extract(clips, tmp_path / "f.zarr", dtype="float32").written == 1
    assert read_cache(tmp_path / "f.zarr") == read_cache(tmp_path / "whole.zarr")


def test_a_process_that_dies_twice_is_an_error_and_the_others_work_is_kept(tmp_path, clips, small_windows, monkeypatch):
    def start(module, environment=None, count=[0]):  # noqa: B006 - counts the calls
        count[0] += 1
        child, connection = start_child(module, environment)
        if count[0] > 1:
            child.kill()
        return child, connection

    monkeypatch.setattr(extract.workers.processes, "start_child", start)
    with pytest.raises(ExtractProcessError, match=r"killed by signal 9.*killed by signal 9.*The same command"):
        emi.extract(clips, tmp_path / "f.zarr", processes=2)
    with emi.open_cache(tmp_path / "f.zarr") as store:
        assert 0 < len(store) < 10
    assert len(emi.open_cache(tmp_path / "f.zarr")) + emi.extract(clips, tmp_path / "f.zarr").written == 10


def test_an_interrupted_parent_has_listed_the_failures_so_far(tmp_path, clips, small_windows):
    damaged = shutil.copytree(clips, tmp_path / "damaged")
    for file in damaged.rglob("*.wav"):
        file.write_bytes(b"no audio")

    def interrupt(done, total, seconds):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.extract(damaged, tmp_path / "f.zarr", ExtractSettings(processes=2), on_progress=interrupt)
    assert len((tmp_path / "failures.csv").read_text().splitlines()) == 1 + 3


def test_a_share_without_work_starts_no_process(tmp_path, clips, small_windows, started):
    emi.extract(clips, tmp_path / "f.zarr", shard="1/5")
    emi.extract(clips, tmp_path / "f.zarr", shard="2/5")
    emi.extract(clips, tmp_path / "f.zarr", shard="3/5")
    emi.extract(clips, tmp_path / "f.zarr", shard="4/5")
    assert emi.extract(clips, tmp_path / "f.zarr", processes=2).written == 2
    assert len(started) == 1


def test_child_processes_do_not_import_from_the_working_directory(tmp_path, clips, monkeypatch):
    for name in ("extract", "cache", "av", "random"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        cache.system.child_process.sys,
        "path",
        [path for path in cache.system.child_process.sys.path if path] + [tmp_path],
    )
    decoder = Decoder()
    try:
        assert decoder.read(Source("00001", clips / "00001.wav"), 0.5).seconds == pytest.approx(0.3)
    finally:
        decoder.close()


def test_without_decoding_processes_the_threads_decode(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(extract.clips, "PROCESSES_FROM", 1)
    monkeypatch.setattr(extract.modality.decoding, "start_child", lambda _: start_child("extract.no_such_module"))
    monkeypatch.setattr(Decoder, "ready", Decoder._await_start)
    summary = emi.extract(clips, tmp_path / "f.zarr")
    assert (summary.written, summary.failures) == (10, [])
    monkeypatch.setattr(
        extract.modality.decoding, "start_child", lambda _: (_ for _ in ()).throw(OSError("no more processes"))
    )
    assert emi.extract(clips, tmp_path / "g.zarr").written == 10


def test_a_decoder_that_died_between_two_files_loses_no_clip(clips):
    decoder = Decoder()
    try:
        decoder.read(Source("00001", clips / "00001.wav"), 0.5)
        decoder._child.kill()
        decoder._child.wait()
        assert decoder.read(Source("00002", clips / "00002.wav"), 0.5).seconds == pytest.approx(1.4)
    finally:
        decoder.close()
