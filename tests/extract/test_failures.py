"""`failures.csv`: one row per clip that cannot be used; the others go on, and a second run retries only those."""

import csv
import os
import threading

import numpy as np
import pytest
import torch

import emi
import extract.failures
import extract.plan
from cache import open_cache
from extract.backbones import BACKBONES, Features, Identity
from extract.backbones.silero.encoder import SileroBackbone
from extract.failures import COLUMNS, Failure, failures_path, write_failures

BAD = {
    "damaged": "truncated",
    "empty": "is empty (0 bytes)",
    "film": "has no audio track",
    "folder": "is a folder",
    "list": "not a media file",
    "nan": "not finite",
    "text": "not a media file",
}


@pytest.fixture
def folder(tmp_path, media):
    """Two good clips and one of each kind of bad."""
    root = tmp_path / "media"
    root.mkdir()
    for name in ("a", "z", "damaged", "secret"):
        media.write(root / f"{name}.wav", media.tones(0.5))
    (root / "secret.wav").rename(root / "z2.wav")
    content = (root / "damaged.wav").read_bytes()
    (root / "damaged.wav").write_bytes(content[: len(content) // 2])
    (root / "empty.mp3").touch()
    media.write(root / "film.mp4", None)
    (root / "folder.wav").mkdir()
    (root / "list.wav").write_text("#EXTM3U\n#EXTINF:1,\nz2.wav\n#EXT-X-ENDLIST\n")
    media.write(root / "nan.wav", np.full((1, 800), np.nan), codec="pcm_f32le")
    (root / "text.wav").write_text("not audio at all\n" * 20)
    return root


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_bad_file_is_one_row_and_one_failure_and_the_others_are_extracted(folder, tmp_path):
    summary = emi.extract(folder, tmp_path / "f.zarr")
    assert summary.written == 3
    assert summary.failures_file == tmp_path / "failures.csv"
    table = rows(summary.failures_file)
    assert [row["id"] for row in table] == sorted(BAD) == sorted(failure.id for failure in summary.failures)
    for row in table:
        assert tuple(row) == COLUMNS == ("id", "path", "reason", "cache")
        assert BAD[row["id"]] in row["reason"]
        assert row["path"] == str(next(folder.glob(f"{row['id']}.*")))
        assert row["cache"] == "f.zarr"
    with open_cache(tmp_path / "f.zarr") as store:
        assert set(store.ids) == {"a", "z", "z2"}


def test_clips_of_a_csv_without_a_file_are_rows_too(folder, tmp_path):
    (tmp_path / "labels.csv").write_text("Filename,Joy\na,0.5\n7,0.5\n8.mp3,0.5\n")
    summary = emi.extract(tmp_path / "labels.csv", tmp_path / "f.h5", media_root=folder)
    assert summary.written == 1
    assert {row["id"]: row["reason"] for row in rows(tmp_path / "failures.csv")} == {
        "00007": "does not exist",
        "8": "does not exist",
    }


def test_a_second_run_retries_only_the_failures(folder, tmp_path, monkeypatch):
    first = emi.extract(folder, tmp_path / "f.zarr")
    before = rows(first.failures_file)
    monkeypatch.setattr(SileroBackbone, "forward", lambda *_: pytest.fail("a clip was computed again"))
    second = emi.extract(folder, tmp_path / "f.zarr")
    assert (second.written, second.present) == (0, 3)
    assert len(second.failures) == len(BAD)
    assert rows(second.failures_file) == before


def test_a_repaired_file_leaves_failures_csv_and_the_last_one_deletes_it(folder, tmp_path, media):
    emi.extract(folder, tmp_path / "f.zarr")
    media.write(folder / "text.wav", media.tones(0.3))
    summary = emi.extract(folder, tmp_path / "f.zarr")
    assert summary.written == 1
    assert [row["id"] for row in rows(tmp_path / "failures.csv")] == sorted(BAD.keys() - {"text"})
    (folder / "folder.wav").rmdir()
    for name in BAD:
        next(folder.glob(f"{name}.*"), folder / "-").unlink(missing_ok=True)
        media.write(folder / f"{name}.wav", media.tones(0.3))
    summary = emi.extract(folder, tmp_path / "f.zarr")
    assert (summary.written, summary.failures, summary.failures_file) == (6, [], None)
    assert not (tmp_path / "failures.csv").exists()


def test_a_file_that_vanished_after_it_was_extracted_is_no_failure(tmp_path, media):
    for name in ("00001", "00002"):
        media.write(tmp_path / f"{name}.wav", media.tones(0.3))
    (tmp_path / "clips.csv").write_text("Filename\n1\n2\n3\n")
    assert len(emi.extract(tmp_path / "clips.csv", tmp_path / "f.zarr").failures) == 1
    (tmp_path / "00001.wav").unlink()
    media.write(tmp_path / "00003.wav", media.tones(0.3))
    summary = emi.extract(tmp_path / "clips.csv", tmp_path / "f.zarr")
    assert (summary.written, summary.failures) == (1, [])


def test_failures_of_other_caches_and_other_jobs_stay(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)
    emi.extract(folder, tmp_path / "other.h5")
    for i in (1, 2, 3):
        emi.extract(folder, tmp_path / "f.zarr", shard=f"{i}/3")
    table = rows(tmp_path / "failures.csv")
    assert sorted(row["id"] for row in table if row["cache"] == "f.zarr") == sorted(BAD)
    assert sorted(row["id"] for row in table if row["cache"] == "other.h5") == sorted(BAD)


def test_failures_listed_before_an_interruption_are_kept(folder, tmp_path):
    from extract import run

    def interrupt(done, total, seconds):
        if done == total - 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.extract(folder, tmp_path / "f.zarr", on_progress=interrupt)
    assert {row["id"] for row in rows(tmp_path / "failures.csv")} <= set(BAD)
    assert rows(tmp_path / "failures.csv")


class Extreme:
    """Features that cannot be stored for clips of 0.3 s."""

    def identify(self, name):
        fingerprint = dict.fromkeys(("backbone", "weights_sha256", "config_sha256", "layer", "normalisation"), name)
        return Identity(source=name, fingerprint=fingerprint, dim=2, hop_seconds=0.02)

    def load(self, identity, *_):
        value = {"overflow": 1e6, "nan": np.nan}[identity.source]

        def backbone(waveforms):
            frames = torch.stack([torch.full((2,), value if len(w) == 4800 else 1.0) for w in waveforms])
            return Features(frames, [1] * len(waveforms))

        backbone.pads = False
        return backbone


@pytest.mark.parametrize(("name", "reason"), [("overflow", "--dtype float32"), ("nan", "not finite")])
def test_features_that_cannot_be_stored_are_a_row_without_path(tmp_path, media, monkeypatch, name, reason):
    monkeypatch.setitem(BACKBONES, name, Extreme())
    for i, seconds in enumerate((0.3, 0.4)):
        media.write(tmp_path / f"{i}.wav", media.tones(seconds))
    summary = emi.extract(tmp_path, tmp_path / "f.zarr", backbone=name)
    assert summary.written == 1
    (row,) = rows(tmp_path / "failures.csv")
    assert (row["id"], row["path"]) == ("0", "")
    assert reason in row["reason"]


def test_a_cache_at_a_url_has_its_failures_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert failures_path("s3://bucket/f.zarr").resolve() == tmp_path / "failures.csv"
    assert failures_path("a/f.zarr").as_posix() == "a/failures.csv"
    path = write_failures("memory://f.zarr", [extract.failures.Failure("ü,\n", "p", 'a "quoted" reason')], ["ü,\n"])
    assert rows(path) == [{"id": "ü,\n", "path": "p", "reason": 'a "quoted" reason', "cache": "f.zarr"}]
    assert write_failures("memory://f.zarr", [], ["ü,\n"]) is None
    assert os.listdir(tmp_path) == []


def test_jobs_that_end_at_the_same_time_keep_each_others_rows(tmp_path):
    def job(number):
        for i in range(10):
            write_failures(str(tmp_path / "f.zarr"), [Failure(f"{number}-{i}", "x", "is bad")], [f"{number}-{i}"])

    threads = [threading.Thread(target=job, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with (tmp_path / "failures.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 60


def test_a_name_that_is_not_utf_8_is_a_row_that_can_be_read_and_the_others_are_extracted(tmp_path, media):
    odd = os.fsencode(tmp_path) + b"/m/mod\xe0.wav"
    (tmp_path / "m").mkdir()
    media.write(tmp_path / "m/good.wav", media.tones(0.5))
    media.write(tmp_path / "m/x.wav", media.tones(0.5))
    try:
        os.rename(tmp_path / "m/x.wav", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for _ in range(2):
        summary = emi.extract(tmp_path / "m", tmp_path / "f.zarr")
        (row,) = rows(tmp_path / "failures.csv")
        assert row["id"] == "mod\\xe0"
        assert row["path"] == f"{tmp_path}/m/mod\\xe0.wav"
        assert row["reason"] == "has a name that is not UTF-8; rename it"
    assert summary.present == 1
    assert open_cache(tmp_path / "f.zarr").ids == ["good"]


def test_a_folder_whose_own_name_is_not_utf_8_is_read(tmp_path, media):
    (tmp_path / "m").mkdir()
    media.write(tmp_path / "m/good.wav", media.tones(0.5))
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe0")
    try:
        os.rename(tmp_path / "m", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    (tmp_path / odd / "bad.wav").touch()
    summary = emi.extract(odd, tmp_path / "f.zarr")
    assert open_cache(tmp_path / "f.zarr").ids == ["good"]
    assert [failure.path for failure in summary.failures] == [f"{tmp_path}/\\xe0/bad.wav"]
