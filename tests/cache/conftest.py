"""Tiny clips whose numbers follow from their id, so that any process can say what a cache must hold."""

import contextlib
import os
import shutil
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cache import CacheWriter, Clip, Header, open_cache

SUFFIXES = (".zarr", ".h5")
IDS = ("train/клип/один", "train/00001", "日本語", "z", "train/a b.c", "Ünï/ço∂é/🎭")
VAD = ("arousal", "dominance", "valence")
FINGERPRINT = {"backbone": "tiny", "weights_sha256": "0123456789abcdef" * 4, "layer": 12, "dtype": "float16"}

Record = tuple[str, tuple[int, ...], bytes, bytes | None, bytes | None, float]


def make_header(vad: bool = True, dim: int = 4, **fingerprint: object) -> Header:
    return Header(
        fingerprint=FINGERPRINT | fingerprint,
        dim=dim,
        vad_names=VAD if vad else (),
        provenance={"numpy": np.__version__},
    )


def make_clip(clip_id: str, frames: int | None = None, vad: bool = True, dim: int = 4) -> Clip:
    rng = np.random.default_rng(zlib.crc32(clip_id.encode()))
    frames = int(rng.integers(1, 9)) if frames is None else frames
    values = rng.normal(size=(frames, dim + 3)).astype(np.float32)
    pooled = rng.normal(size=3).astype(np.float32)
    return Clip(
        clip_id, values[:, :dim], values[:, dim:] if vad else None, pooled if vad else None, frames * 0.02 + 0.01
    )


def make_cache(path: Path | str, ids: Iterable[str], per_segment: int = 2, header: Header | None = None) -> Path | str:
    header = header or make_header()
    with CacheWriter(path, header) as writer:
        for number, clip_id in enumerate(ids, 1):
            writer.add(make_clip(clip_id, vad=bool(header.vad_names), dim=header.dim))
            if number % per_segment == 0:
                writer.commit()
    return path


def record(clip: Clip) -> Record:
    """All of a clip, comparable with `==` down to the last bit."""
    vad, pooled = (None if a is None else a.tobytes() for a in (clip.vad, clip.vad_pooled))
    return str(clip.frames.dtype), clip.frames.shape, clip.frames.tobytes(), vad, pooled, clip.seconds


def expected(ids: Iterable[str], header: Header | None = None) -> dict[str, Record]:
    """What a cache filled with these ids holds."""
    header = header or make_header()
    return {i: record(header.stored(make_clip(i, vad=bool(header.vad_names), dim=header.dim))) for i in ids}


def contents(path: Path | str) -> dict[str, Record]:
    """What a cache does hold, in its order; raises what reading it raises."""
    with open_cache(path) as store:
        return {clip_id: record(store[clip_id]) for clip_id in store}


for function in (make_header, make_clip, make_cache, record, expected, contents):
    # Test modules cannot import a conftest; each function is a fixture of its own name instead.
    globals()[f"_{function.__name__}"] = pytest.fixture(name=function.__name__)(lambda function=function: function)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing for want of it, and it is half of what these tests would take."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a cache of either container may be made."""
    return tmp_path / f"features{request.param}"


@pytest.fixture(scope="session", params=SUFFIXES)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with `IDS` in two segments, for reading only."""
    return Path(make_cache(tmp_path_factory.mktemp("filled") / f"features{request.param}", IDS, per_segment=4))


@pytest.fixture
def copy(filled: Path, tmp_path: Path) -> Path:
    """The filled cache once more, to change and to damage."""
    copied = tmp_path / filled.name
    shutil.copytree(filled, copied) if filled.is_dir() else shutil.copyfile(filled, copied)
    return copied


@pytest.fixture
def ids() -> list[str]:
    """What is in `filled` and `copy`."""
    return list(IDS)


@pytest.fixture
def fork() -> Iterator[Callable[..., int]]:
    """Run a function in a child process and return the child's id; `exit_code` waits for it.

    A fork costs milliseconds where a new interpreter would import for a second.
    """
    children = []

    def start(function: Callable[..., object], *arguments: object, seconds: int = 60) -> int:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # zarr has a thread; it knows forks
            child = os.fork()
        if not child:
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(seconds)
                function(*arguments)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        children.append(child)
        return child

    yield start
    for child in children:
        with contextlib.suppress(ChildProcessError):  # waited for already, and its number may be another's by now
            if os.waitpid(child, os.WNOHANG) == (0, 0):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)


@pytest.fixture
def exit_code() -> Callable[[int], int]:
    """Wait for a child: 0 if its function returned, 1 if it raised, -9 if it was killed, -14 if it hung."""
    return lambda child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
