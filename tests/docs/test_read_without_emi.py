"""docs/read-without-emi.md, run where emi cannot be imported, finds in a cache what emi finds in it."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache import CacheWriter, Clip, Header, open_cache
from cache.maintenance.rewrite import repair

PAGE = Path(__file__).parents[2] / "docs" / "read-without-emi.md"
VAD = ("arousal", "dominance", "valence")
PLAIN = Header(fingerprint={"dtype": "float16"}, dim=8, vad_names=VAD)
TIMED = replace(PLAIN, hop_seconds=None, modality="face", optional=("times", "valid"))
BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("cache", "emi", "extract", "train_head"):
            raise ImportError(f"{name} is blocked here")

sys.meta_path.insert(0, Blocked())
"""


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


def alone(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter that sees neither the folder of the project nor its packages."""
    command = [sys.executable, "-I", "-W", "error", "-c", BLOCKED + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def printed(code: str, folder: Path) -> list[str]:
    result = alone(code, folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def make_clip(clip_id: str, frames: int) -> Clip:
    values = np.random.default_rng(frames).normal(size=(frames, 8 + 3)).astype(np.float32)
    return Clip(clip_id, values[:, :8], values[:, 8:], values[0, 8:], frames * 0.02)


@pytest.fixture(params=[".zarr", ".h5"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Three segments of two clips, in a folder with nothing else."""
    path = tmp_path / f"features{request.param}"
    with CacheWriter(path, Header(fingerprint={"dtype": "float16"}, dim=8, vad_names=VAD)) as writer:
        for i, clip_id in enumerate(("b", "a/Ünï", "日本語", "a/b c", "z", "0")):
            writer.add(make_clip(clip_id, i + 1))
            if i % 2:
                writer.commit()
    return path


def listed(path: Path) -> list[str]:
    """What the snippets print of a cache."""
    with open_cache(path) as store:
        version = 2 if store.header.optional else 1
        clips = [f"{i} {store[i].frames.shape} {store[i].frames.sum(dtype='float64')}" for i in store]
        return [f"emi-features {version} {' '.join(store.vad_names)}", *clips]


def reader(path: Path) -> str:
    (code,) = [code for code in snippets("python") if f'"{path.name}"' in code and "seen" in code]
    return code


@pytest.mark.parametrize("package", ["cache", "emi", "extract.run", "train_head"])
def test_emi_cannot_be_imported_where_the_snippets_run(package, tmp_path):
    assert "is blocked here" in alone(f"import {package}", tmp_path).stderr


def test_the_snippets_list_every_clip_of_a_cache(cache):
    assert printed(reader(cache), cache.parent) == listed(cache)


def test_the_snippets_pass_over_a_segment_that_was_replaced_and_is_still_there(cache):
    """A repair that was cut short: without `replaces`, the damaged clip that it dropped would be listed again."""
    frames = make_clip("日本語", 3).frames.astype(np.float16).tobytes()
    file = next(
        f for f in (cache.rglob("*") if cache.is_dir() else [cache]) if f.is_file() and frames in f.read_bytes()
    )
    file.write_bytes(file.read_bytes().replace(frames, bytes(len(frames))))
    if cache.is_dir():
        shutil.copytree(cache / "segments", cache.parent / "old")
    assert [clip.id for clip in repair(cache).dropped] == ["日本語"]
    if cache.is_dir():
        shutil.copytree(cache.parent / "old", cache / "segments", dirs_exist_ok=True)
    assert len(listed(cache)) == 1 + 5
    assert printed(reader(cache), cache.parent) == listed(cache)


@pytest.mark.parametrize("suffix", [".zarr", ".h5"])
def test_the_snippets_list_the_clips_of_a_cache_of_version_2(tmp_path, suffix):
    path = tmp_path / f"features{suffix}"
    with CacheWriter(path, TIMED) as writer:
        for number, clip_id in enumerate("abc", 1):
            writer.add(timed(make_clip(clip_id, number)))
    assert printed(reader(path), tmp_path) == listed(path)
    assert listed(path)[0].startswith("emi-features 2 ")


def timed(clip: Clip) -> Clip:
    """Return the clip with a time and a mark for each of its frames."""
    starts = np.arange(len(clip.frames), dtype=np.float32) * 0.04
    return replace(clip, times=np.stack([starts, starts + 0.03], 1), valid=np.arange(len(starts)) != 1)


@pytest.mark.parametrize("part", ["vad", "times"])
def test_the_checksum_snippet_finds_the_damaged_clip(tmp_path, part):
    path, optional = tmp_path / "features.h5", part == "times"
    clips = [timed(clip) if optional else clip for clip in (make_clip(clip_id, ord(clip_id)) for clip_id in "abc")]
    with CacheWriter(path, TIMED if optional else PLAIN) as writer:
        for clip in clips:
            writer.add(clip)
    (code,) = [code for code in snippets("python") if "google_crc32c" in code]
    assert printed(code, tmp_path) == ["a intact", "b intact", "c intact"]
    content = path.read_bytes()
    needle = getattr(clips[1], part).tobytes()
    at = content.index(needle, content.index(getattr(clips[0], part).tobytes()) + 1) + len(needle) - 1
    path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert printed(code, tmp_path) == ["a intact", "b damaged", "c intact"]


def test_h5dump_shows_the_groups_and_attributes(tmp_path):
    if not shutil.which("h5dump"):
        pytest.skip("h5dump is not installed: apt-get install hdf5-tools")
    with CacheWriter(
        tmp_path / "features.h5", Header(fingerprint={"dtype": "float16"}, dim=8, vad_names=VAD)
    ) as writer:
        writer.add(make_clip("a", 3))
    commands = re.findall(r"^\$ (h5dump .*)$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    shown = [subprocess.run(c.split(), cwd=tmp_path, capture_output=True, text=True, check=True) for c in commands]
    for kind, names in {
        "ATTRIBUTE": ("format", "version", "fingerprint", "vad_names", "index_crc32c"),
        "GROUP": ("segments",),
        "DATASET": ("frames", "vad", "vad_pooled", "offsets", "ids", "seconds", "checksums"),
    }.items():
        for name in names:
            assert f'{kind} "{name}"' in shown[0].stdout
    assert '{"dtype": "float16"}' in shown[1].stdout.replace("\\", "")  # some versions escape
