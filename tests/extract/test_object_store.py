"""Caches in an object store: a real S3 server (moto) in a process of its own, on the loopback interface."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from warm_python import python

import emi
import extract.plan
from cache import open_cache

pytest.importorskip("s3fs")
pytest.importorskip("moto")

CHILD = """
import os, signal, sys
import emi
import cache.writer, extract.plan
from extract import run
from extract.settings import ExtractSettings

media, cache_path, stop, shard = sys.argv[1:]
cache.writer.CacheWriter.__init__.__kwdefaults__["segment_bytes"] = 200_000  # a few clips
extract.plan.WINDOW_CLIPS = 4

def progress(done, total, seconds):
    if done == int(stop):
        os.kill(os.getpid(), signal.SIGKILL)

run.extract(media, cache_path, ExtractSettings(dtype="float32", shard=shard), on_progress=progress)
"""


@pytest.fixture(scope="session")
def server():
    """The variables of the environment that lead to the server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "moto_server ended"
                time.sleep(0.05)
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    """URL of an empty bucket; the working folder is a temporary one, for failures.csv."""
    import s3fs

    for name, value in server.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    name = tmp_path.name.replace("_", "-")[:60]
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 4)


@pytest.fixture
def local(tmp_path, clips, read_cache, small_windows):
    """What a local cache of the clips holds."""
    emi.extract(clips, tmp_path / "local.zarr", dtype="float32")
    return read_cache(tmp_path / "local.zarr")


def child(media, cache, stop=0, shard="1/1"):
    """An extraction in a process of its own that kills itself after `stop` clips."""
    command = [python(), "-c", CHILD, str(media), cache, str(stop), shard]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def command_line(*arguments):
    command = [python(), "-m", "emi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_cache_in_a_bucket_equals_a_local_one(bucket, clips, local, read_cache):
    summary = emi.extract(clips, f"{bucket}/a/f.zarr", dtype="float32")
    assert (summary.written, summary.present) == (10, 0)
    assert read_cache(f"{bucket}/a/f.zarr") == local
    assert emi.extract(clips, f"{bucket}/a/f.zarr", dtype="float32").present == 10


def test_the_command_line_fills_a_bucket_and_lists_failures_in_the_working_folder(bucket, clips, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    (media / "good.wav").hardlink_to(clips / "00001.wav")
    (media / "bad.wav").write_bytes(b"")
    result = command_line("extract", media, "--cache", f"{bucket}/f.zarr")
    assert result.returncode == 1, result.stderr
    assert "wrote 1 clips" in result.stdout
    assert (tmp_path / "failures.csv").read_text().splitlines()[1].startswith("bad,")
    assert "1 clips" in command_line("cache", "info", f"{bucket}/f.zarr").stdout


def test_a_writer_that_is_killed_loses_nothing_that_it_committed(bucket, clips, local, read_cache):
    with child(clips, f"{bucket}/f.zarr", stop=8) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, errors
    with open_cache(f"{bucket}/f.zarr") as store:
        committed = len(store)
    assert 0 < committed < 8
    summary = emi.extract(clips, f"{bucket}/f.zarr", dtype="float32")
    assert (summary.present, summary.written) == (committed, 10 - committed)
    assert read_cache(f"{bucket}/f.zarr") == local


@pytest.mark.slow
def test_a_writer_killed_during_an_upload_leaves_nothing_visible_to_readers(bucket, clips, local, read_cache):
    for after in (0.0, 0.01, 0.03, 0.1):  # seconds from the first object of this writer on
        before = objects(bucket)
        with child(clips, f"{bucket}/f.zarr") as process:
            while objects(bucket) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(after)
            process.kill()
    with child(clips, f"{bucket}/f.zarr") as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert read_cache(f"{bucket}/f.zarr") == local


def objects(bucket):
    import s3fs

    return len(s3fs.S3FileSystem().find(bucket.removeprefix("s3://"), refresh=True))


@pytest.mark.parametrize(
    "shards", [("1/2", "2/2"), pytest.param(("1/1", "1/1"), marks=pytest.mark.slow)], ids=["shares", "the-same-clips"]
)
def test_two_writers_at_once_lose_nothing(bucket, clips, local, read_cache, shards):
    writers = [child(clips, f"{bucket}/f.zarr", shard=shard) for shard in shards]
    for process in writers:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert read_cache(f"{bucket}/f.zarr") == local


@pytest.mark.slow
def test_ray_fills_a_bucket(bucket, clips, local, read_cache):
    pytest.importorskip("ray")
    summary = emi.extract(clips, f"{bucket}/f.zarr", dtype="float32", engine="ray")
    assert summary.written == 10
    assert read_cache(f"{bucket}/f.zarr") == local


def test_a_cache_in_memory_equals_a_local_one(clips, local, read_cache, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert emi.extract(clips, "memory://a/f.zarr", dtype="float32").written == 10
    assert read_cache("memory://a/f.zarr") == local
    assert emi.extract(clips, "memory://a/f.zarr", dtype="float32").present == 10


def test_clips_of_another_writer_are_seen_by_an_open_process(bucket, clips, small_windows):
    import boto3  # a client that shares nothing with the one that zarr reads through

    emi.extract(clips, f"{bucket}/f.zarr", dtype="float32", shard="1/3")
    emi.extract(clips, f"{bucket}/other.zarr", dtype="float32", shard="2/3")
    assert len(open_cache(f"{bucket}/f.zarr")) == 4
    there = boto3.resource("s3").Bucket(bucket.removeprefix("s3://"))
    for stored in there.objects.filter(Prefix="other.zarr/segments/0"):
        there.copy({"Bucket": there.name, "Key": stored.key}, stored.key.replace("other", "f"))
    assert len(open_cache(f"{bucket}/f.zarr")) == 8


def test_a_missing_package_is_an_error_that_names_the_extra():
    code = "import sys; sys.modules['s3fs'] = None; import emi.cli; sys.argv[1:] = sys.argv[2:]; emi.cli.main()"
    command = [sys.executable, "-c", code, "-", "cache", "info", "s3://bucket/f.zarr"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "pip install 'emi-mimicry[cloud]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_url_that_nothing_opens_is_refused_by_its_protocol():
    with pytest.raises(emi.EmiError, match="nothing here opens foo://"):
        open_cache("foo://bucket/f.zarr")


@pytest.mark.parametrize(
    "change",
    [{"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}],
    ids=["no-server", "no-credentials"],
)
def test_an_object_store_that_cannot_be_read_is_a_one_sentence_error(server, monkeypatch, change):
    for name, value in (server | {"AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"} | change).items():
        monkeypatch.setenv(name, value)
    result = command_line("cache", "info", "s3://bucket/f.zarr")
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("emi: s3://bucket/f.zarr cannot be read")
    assert len(result.stderr.splitlines()) == 1
