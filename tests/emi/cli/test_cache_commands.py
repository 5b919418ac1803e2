"""The `emi cache` commands as a user meets them: what they say, and their exit codes."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import zlib

import numpy as np
import pytest
import zarr
from warm_python import python

from cache import CacheWriter, Clip, Header, open_cache
from cache.containers.container import segment_name
from emi.cli import main


def emi(*arguments, code=0):
    command = [python(), "-m", "emi", "cache", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result


@pytest.fixture
def cache(labelled_cache, tmp_path):
    """A cache of extracted clips, to change."""
    return shutil.copytree(labelled_cache, tmp_path / "features.zarr")


def damage(cache):
    """Flip a byte in the first clip's frames."""
    (shard,) = (next(p for p in (cache / "segments").iterdir() if p.is_dir()) / "frames" / "c").glob("0/0")
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    return zarr.open_group(cache, mode="r")


def test_a_sound_cache_is_read_and_called_sound(cache):
    result = emi("verify", cache)
    assert result.stdout.startswith("read ")
    assert result.stdout.endswith("no damage\n")


def test_a_damaged_clip_is_named_dropped_and_can_be_filled_again(cache):
    with open_cache(cache) as store:
        ids = list(store.ids)
    damage(cache)
    found = emi("verify", cache, code=1)
    assert "1 clips damaged:" in found.stderr
    assert f"  {ids[0]} (the bytes do not match their checksum)" in found.stderr
    assert f"mend it with: emi cache repair {cache}" in found.stderr
    assert "no damage" not in found.stdout
    repaired = emi("repair", cache)
    assert f"1 clips dropped:\n  {ids[0]}" in repaired.stderr
    assert f"holds {len(ids) - 1} sound clips" in repaired.stdout
    assert emi("verify", cache).stdout.endswith("no damage\n")
    with open_cache(cache) as store:
        assert list(store.ids) == ids[1:]
    assert "nothing to do" in emi("repair", cache).stdout


def test_a_damaged_cache_is_not_compacted(cache):
    damage(cache)
    assert "is damaged, and was left as it is" in emi("compact", cache, code=2).stderr


@pytest.mark.parametrize("command", ["info", "verify", "repair", "compact"])
def test_a_cache_that_is_not_there_is_said_to_be_missing(command, tmp_path):
    result = emi(command, tmp_path / "none.zarr", code=2)
    assert result.stderr == (
        f"emi: there is no feature cache at {tmp_path}/none.zarr; make one with `emi extract MEDIA --cache "
        f"{tmp_path}/none.zarr`\n"
    )


@pytest.mark.parametrize("command", ["info", "verify", "repair", "compact"])
def test_a_cache_from_the_future_is_refused(command, cache):
    root = cache / "zarr.json"
    root.write_text(root.read_text().replace('"version": 1', '"version": 3'))
    assert "has cache version 3, and this emi reads versions up to 2; upgrade" in emi(command, cache, code=2).stderr


def test_info_says_everything_as_json(cache):
    facts = json.loads(emi("info", cache, "--json").stdout)
    assert facts["compression"] == "none"
    assert facts["files"] == sum(path.is_file() for path in cache.rglob("*"))
    assert facts["bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert facts.keys() >= {"clips", "hours", "segments", "fingerprint", "provenance", "lost_segments"}


def test_convert_and_merge_go_on_where_they_stopped(cache, tmp_path):
    assert "copied" in emi("convert", cache, tmp_path / "a.h5").stdout
    assert "nothing to do" in emi("convert", cache, tmp_path / "a.h5").stdout
    assert (
        "in several sources, and the first counts"
        in emi("merge", cache, tmp_path / "a.h5", "--out", tmp_path / "b.zarr").stdout
    )


def test_a_derived_cache_says_what_it_was_derived_from(cache, tmp_path):
    emi("derive", cache, tmp_path / "small.h5", "--pool", 5)
    text = emi("info", tmp_path / "small.h5").stdout
    assert "derived.pool" in text
    assert "160 ms" in text


def clip(clip_id, frames=3):
    values = np.random.default_rng(zlib.crc32(clip_id.encode())).normal(size=(frames, 7)).astype(np.float32)
    return Clip(clip_id, values[:, :4], values[:, 4:], values[0, 4:], frames * 0.02)


def fill(path, ids, **fingerprint):
    """A cache in segments of two clips."""
    fields = {"backbone": "tiny", "dtype": "float16"} | fingerprint
    header = Header(fingerprint=fields, dim=4, vad_names=("a", "d", "v"), provenance={"numpy": "2"})
    with CacheWriter(path, header) as writer:
        for number, clip_id in enumerate(ids, 1):
            writer.add(clip(clip_id))
            if number % 2 == 0:
                writer.commit()
    return path


@pytest.fixture(params=[".zarr", ".h5"])
def tiny(request, tmp_path):
    return fill(tmp_path / f"tiny{request.param}", "abcdef")


@pytest.fixture
def run(monkeypatch, capsys):
    """A command in this process: exit code, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emi", "cache", *map(str, arguments)])
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        with pytest.raises(SystemExit) as stopped:
            main()
        return (stopped.value.code, *capsys.readouterr())

    return run


COMMANDS = {
    "info": ["info", "{}"],
    "verify": ["verify", "{}"],
    "repair": ["repair", "{}"],
    "compact": ["compact", "{}"],
    "convert": ["convert", "{}", "target.h5"],
    "merge": ["merge", "{}", "{}", "--out", "target.h5"],
}


@pytest.mark.parametrize("suffix", ["zarr", "h5"])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_no_cache_is_one_sentence_and_exit_code_2(run, tmp_path, monkeypatch, command, suffix):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[word.format(f"none.{suffix}") for word in command])
    assert (code, out) == (2, "")
    assert err.startswith(f"emi: there is no feature cache at none.{suffix}; make one with `emi extract")
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_later_version_is_one_sentence_and_exit_code_2(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "tiny.zarr", "ab")
    zarr.open_group("tiny.zarr", mode="r+").attrs["version"] = 3
    code, out, err = run(*[word.format("tiny.zarr") for word in command])
    assert (code, out) == (2, "")
    assert "version 3, and this emi reads versions up to 2; upgrade" in err
    assert not (tmp_path / "target.h5").exists()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_what_is_no_cache_is_one_sentence_and_exit_code_2(run, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.h5").write_text("mine")
    code, _, err = run(*[word.format("notes.h5") for word in command])
    assert (code, err.startswith("emi: notes.h5 cannot be read as HDF5")) == (2, True)


def spoil(path, clip_id):
    """Change a byte of a clip's frames."""
    needle = clip(clip_id).frames.astype(np.float16).tobytes()
    files = [path] if path.is_file() else [f for f in path.rglob("0") if f.is_file()]
    (file,) = [f for f in files if needle in f.read_bytes()]
    file.write_bytes(file.read_bytes().replace(needle, bytes([needle[0] ^ 1]) + needle[1:]))


def test_verify_and_repair_name_the_damaged_clips_and_no_others(run, tiny):
    for clip_id in "be":
        spoil(tiny, clip_id)
    code, out, err = run("verify", tiny)
    assert code == 1
    assert out.startswith(f"read 6 clips in 3 segments of {tiny}: 0.0 MB of features")
    assert err.splitlines() == [
        "2 clips damaged:",
        "  b (the bytes do not match their checksum)",
        "  e (the bytes do not match their checksum)",
        f"mend it with: emi cache repair {tiny}",
    ]
    code, out, err = run("repair", tiny)
    assert code == 0
    assert out.splitlines() == [
        f"{tiny} holds 4 sound clips",
        "run the same `emi extract` again to fill what was dropped",
    ]
    assert err.splitlines()[:1] == ["2 clips dropped:"]
    assert run("verify", tiny)[0] == 0
    assert run("repair", tiny)[:2] == (0, "nothing to do: 4 clips, no damage\n")


def test_many_damaged_clips_are_all_named(run, tmp_path):
    ids = [f"clip{i:02d}" for i in range(30)]
    path = fill(tmp_path / "tiny.h5", ids)
    for clip_id in ids:
        spoil(path, clip_id)
    code, _, err = run("verify", path)
    assert code == 1
    assert "30 clips damaged:" in err
    assert "… and 10 more: clip20 clip21" in err
    assert all(clip_id in err for clip_id in ids)


def test_damage_that_takes_no_clip_along_is_found_and_mended(run, tmp_path):
    path = fill(tmp_path / "tiny.zarr", "abcd")
    (path / "segments" / "zarr.json").unlink()
    (segment, _) = sorted(p for p in (path / "segments").iterdir() if p.is_dir())
    (segment / "seconds" / "zarr.json").unlink()
    code, _, err = run("verify", path)
    assert code == 1
    assert "2 clips readable, but damaged around:" in err
    assert "segments/zarr.json is missing" in err
    code, out, err = run("repair", path)
    assert (code, out) == (0, f"{path} holds 4 sound clips, 2 of them written anew\n")
    assert "mended: " in err
    assert run("verify", path)[0] == 0


def test_what_a_crash_left_is_mentioned_and_is_no_damage(run, tmp_path):
    path = fill(tmp_path / "tiny.zarr", "ab")
    (path / "segments" / segment_name()).mkdir()
    code, out, err = run("verify", path)
    assert (code, err) == (0, "")
    assert "1 segments (0.0 MB) were never finished, or are being written; no harm" in out
    assert out.endswith("no damage\n")


def test_compact_counts_segments_before_and_after(run, tiny):
    assert run("compact", tiny) == (0, f"{tiny}: 6 clips, 3 segments before and 1 now\n", "")
    assert run("compact", tiny) == (0, "nothing to do: 6 clips in 1 segments\n", "")


def test_compact_refuses_a_segment_of_no_size(run, tiny):
    code, _, err = run("compact", tiny, "--segment-gb", "0")
    assert (code, err) == (2, "emi: --segment-gb takes a number of gigabytes above zero, such as 64, got 0.0\n")


def test_a_cache_in_use_is_not_rewritten(run, tiny):
    with open_cache(tiny) as store:
        header = store.header
    with CacheWriter(tiny, header):
        for command in ("compact", "repair"):
            code, _, err = run(command, tiny)
            assert (code, "is being written by another process" in err) == (2, True)


def test_convert_says_how_many_clips_it_copied_and_goes_on(run, tiny, tmp_path):
    target = tmp_path / "target.zarr"
    code, out, _ = run("convert", tiny, target, "--dtype", "float32")
    assert (code, out.startswith(f"copied 6 clips to {target} in ")) == (0, True)
    assert run("convert", tiny, target, "--dtype", "float32")[:2] == (
        0,
        f"nothing to do: all 6 clips are in {target}\n",
    )
    code, _, err = run("convert", tiny, target)
    assert (code, "dtype (stored float32, wanted float16)" in err) == (2, True)
    code, _, err = run("convert", tiny, tmp_path / "x.h5", "--dtype", "int8")
    assert (code, err) == (2, "emi: the dtype of a cache is float16 or float32, got 'int8'\n")


def test_merge_refuses_caches_that_were_made_otherwise(run, tiny, tmp_path):
    other = fill(tmp_path / "other.h5", "xy", layer=3)
    code, _, err = run("merge", tiny, other, "--out", tmp_path / "all.zarr")
    assert (code, "layer (stored 3, wanted absent)" in err) == (2, True)
    assert not (tmp_path / "all.zarr").exists()


def test_merge_counts_what_was_there_and_what_is_repeated(run, tiny, tmp_path):
    other, target = fill(tmp_path / "other.h5", "fgh"), fill(tmp_path / "all.h5", "a")
    code, out, _ = run("merge", tiny, other, "--out", target)
    assert code == 0
    assert "copied 7 clips" in out
    assert "; 1 were there; 1 are in several sources, and the first counts" in out


def test_info_counts_and_names_everything(run, tiny):
    facts = json.loads(run("info", tiny, "--json")[1])
    files = [p for p in tiny.rglob("*") if p.is_file()] or [tiny]
    assert facts == {
        "path": str(tiny),
        "modality": "audio",
        "optional": [],
        "clips": 6,
        "frames": 18,
        "hours": 18 * 0.02 / 3600,
        "segments": 3,
        "lost_segments": 0,
        "unsealed_segments": 0,
        "leftovers": 0,
        "files": len(files),
        "bytes": sum(p.stat().st_size for p in files),
        "compression": "none",
        "dim": 4,
        "vad_names": ["a", "d", "v"],
        "hop_seconds": 0.02,
        "fingerprint": {"backbone": "tiny", "dtype": "float16"},
        "provenance": {"numpy": "2"},
    }
    text = run("info", tiny)[1]
    assert "6 clips, 0.00 h (18 frames) in 3 segments" in text
    assert "4 features and a, d, v every 20 ms" in text


def test_info_says_that_segments_are_missing(run, tmp_path):
    path = fill(tmp_path / "tiny.zarr", "abcd")
    shutil.rmtree(min(p for p in (path / "segments").iterdir() if p.is_dir()))
    assert f"1 segments are missing: emi cache verify {path}" in run("info", path)[1]
    assert json.loads(run("info", path, "--json")[1])["lost_segments"] == 1


def test_info_says_that_work_on_an_hdf5_file_is_not_in_it_yet(run, tmp_path):
    path, header = fill(tmp_path / "tiny.h5", "ab"), open_cache(tmp_path / "tiny.h5").header
    with contextlib.suppress(KeyboardInterrupt), CacheWriter(path, header) as writer:
        writer.add(clip("c"))
        raise KeyboardInterrupt
    said = "1 of these segments are not in the file yet, but in a hidden folder beside it; bring them there"
    assert f"{said}: emi cache compact {path}" in run("info", path)[1]
    assert json.loads(run("info", path, "--json")[1])["unsealed_segments"] == 1
    assert run("compact", path)[0] == 0
    assert json.loads(run("info", path, "--json")[1])["unsealed_segments"] == 0
    shutil.copytree(fill(tmp_path / "other.zarr", "x"), tmp_path / ".tiny.h5.zarr")
    assert "1 leftovers of stopped runs are no part of it" in run("info", path)[1]
