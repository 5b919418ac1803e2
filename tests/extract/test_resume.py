"""Killed with SIGKILL at any moment, an extraction goes on and ends with the bytes of an uninterrupted one."""

import random
import signal
import subprocess
import time

import pytest
from warm_python import python

import emi
import extract.plan
from cache import open_cache

CHILD = """
import os, signal, sys
import emi
import cache.writer, extract.plan
from extract import run
from extract.settings import ExtractSettings

media, cache_path, stop, dtype = sys.argv[1:]
cache.writer.CacheWriter.__init__.__kwdefaults__["segment_bytes"] = 200_000  # a few clips
extract.plan.WINDOW_CLIPS = 4

def progress(done, total, seconds):
    print(done, flush=True)
    if done == int(stop):
        os.kill(os.getpid(), signal.SIGKILL)

run.extract(media, cache_path, ExtractSettings(dtype=dtype), on_progress=progress)
"""


def child(media, cache, stop=0, dtype="float32"):
    """An extraction in a process of its own that kills itself after `stop` clips."""
    command = [python(), "-c", CHILD, str(media), str(cache), str(stop), dtype]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 4)


@pytest.mark.parametrize("container", ["f.zarr", "f.h5"])
def test_a_killed_extraction_ends_as_an_uninterrupted_one(tmp_path, clips, read_cache, small_windows, container):
    emi.extract(clips, tmp_path / f"whole_{container}", dtype="float32")
    process = child(clips, tmp_path / container, stop=8)
    out, err = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, err
    assert out.split()[-1] == "8"
    with open_cache(tmp_path / container) as store:
        committed = len(store)
        assert 0 < committed < 8
    summary = emi.extract(clips, tmp_path / container, dtype="float32")
    assert (summary.present, summary.written) == (committed, 10 - committed)
    assert read_cache(tmp_path / container) == read_cache(tmp_path / f"whole_{container}")


@pytest.mark.slow
@pytest.mark.parametrize("container", ["f.zarr", "f.h5"])
def test_an_extraction_killed_several_times_ends_as_an_uninterrupted_one(tmp_path, media, read_cache, container):
    root = tmp_path / "media"
    root.mkdir()
    for i in range(60):
        media.write(root / f"{i:05d}.wav", media.speech(0.3 + i % 7, i))
    finish(child(root, tmp_path / f"whole_{container}"))
    rng, sizes = random.Random(0), []
    for _ in range(8):
        with child(root, tmp_path / container) as process:
            process.stdout.readline()  # its first clip is done
            time.sleep(rng.uniform(0, 0.2))
            process.kill()
        with open_cache(tmp_path / container) as store:
            sizes.append(len(store))
            assert all(len(store[name].frames) for name in store.ids)
    assert sizes == sorted(sizes)
    finish(child(root, tmp_path / container))
    assert read_cache(tmp_path / container) == read_cache(tmp_path / f"whole_{container}")


@pytest.mark.slow
def test_two_jobs_on_one_zarr_cache_at_once_lose_nothing(tmp_path, clips, read_cache, small_windows):
    emi.extract(clips, tmp_path / "whole.zarr", dtype="float32")
    for process in [child(clips, tmp_path / "f.zarr") for _ in range(2)]:
        finish(process)
    assert read_cache(tmp_path / "f.zarr") == read_cache(tmp_path / "whole.zarr")
