"""Tiny clips whose numbers follow from their id, so that any process can say what a cache must hold."""

import contextlib
import json
import os
import random
import shutil
import signal
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr

from cache import CacheWriter, Clip, Header, open_cache
from cache.format import NUMBERS

SUFFIXES = (".zarr", ".h5")
IDS = ("train/клип/один", "train/00001", "日本語", "z", "train/a b.c", "Ünï/ço∂é/🎭")
VAD = ("arousal", "dominance", "valence")
FINGERPRINT = {"backbone": "tiny", "weights_sha256": "0123456789abcdef" * 4, "layer": 12, "dtype": "float16"}

Record = tuple[object, ...]


def make_header(vad: bool = True, dim: int = 4, timed: bool = False, **fingerprint: object) -> Header:
    """`timed` caches have both optional arrays, as those of faces at a variable rate."""
    clock = {"hop_seconds": None, "optional": ("times", "valid"), "modality": "face"} if timed else {}
    return Header(
        fingerprint=FINGERPRINT | fingerprint,
        dim=dim,
        vad_names=VAD if vad else (),
        provenance={"numpy": np.__version__},
        **clock,
    )


def make_clip(clip_id: str, frames: int | None = None, vad: bool = True, dim: int = 4, timed: bool = False) -> Clip:
    rng = np.random.default_rng(zlib.crc32(clip_id.encode()))
    frames = int(rng.integers(1, 9)) if frames is None else frames
    values = rng.normal(size=(frames, dim + 3)).astype(np.float32)
    pooled = rng.normal(size=3).astype(np.float32)
    clip = Clip(
        clip_id, values[:, :dim], values[:, dim:] if vad else None, pooled if vad else None, frames * 0.02 + 0.01
    )
    if not timed:
        return clip
    bounds = np.cumsum(rng.uniform(0.01, 0.1, 2 * frames)).reshape(frames, 2)
    return replace(clip, times=bounds, valid=rng.random(frames) < 0.7)


def clip_of(header: Header, clip_id: str) -> Clip:
    return make_clip(clip_id, vad=bool(header.vad_names), dim=header.dim, timed=bool(header.optional))


def make_cache(path: Path | str, ids: Iterable[str], per_segment: int = 2, header: Header | None = None) -> Path | str:
    header = header or make_header()
    with CacheWriter(path, header) as writer:
        for number, clip_id in enumerate(ids, 1):
            writer.add(clip_of(header, clip_id))
            if number % per_segment == 0:
                writer.commit()
    return path


def record(clip: Clip) -> Record:
    """All of a clip, comparable with `==` down to the last bit."""
    others = [None if a is None else a.tobytes() for a in (getattr(clip, name) for name in NUMBERS[1:])]
    return str(clip.frames.dtype), clip.frames.shape, clip.frames.tobytes(), *others, clip.seconds


def expected(ids: Iterable[str], header: Header | None = None) -> dict[str, Record]:
    """What a cache filled with these ids holds."""
    header = header or make_header()
    return {i: record(header.stored(clip_of(header, i))) for i in ids}


def contents(path: Path | str) -> dict[str, Record]:
    """What a cache does hold, in its order; raises what reading it raises."""
    with open_cache(path) as store:
        return {clip_id: record(store[clip_id]) for clip_id in store}


def folder_of(path: Path) -> Path:
    """The hidden folder with what is not yet in an HDF5 file."""
    return path.with_name(f".{path.name}.zarr")


def everything_of(path: Path) -> list[Path]:
    """Every file and folder of a cache."""
    return [p for root in (path, folder_of(path)) if root.exists() for p in (root, *root.rglob("*"))]


def files_of(path: Path) -> list[Path]:
    """Every file of a cache."""
    return sorted(p for p in everything_of(path) if p.is_file())


def state_of(path: Path) -> dict[Path, object]:
    """Every file and folder of a cache with its bytes and time of change."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else None) for p in everything_of(path)}


def beside(path: Path) -> list[Path]:
    """What lies beside a cache under its name."""
    return [p for p in path.parent.iterdir() if path.name in p.name and p != path]


def copied(path: Path, to: Path) -> Path:
    """A cache once more, with what lies beside it, in the place of what was there."""
    for old in (to, *beside(to)):
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for file in (path, *beside(path)):
        copy = to.parent / file.name.replace(path.name, to.name)
        if file.exists():
            shutil.copytree(file, copy) if file.is_dir() else shutil.copyfile(file, copy)
    return to


def flipped(sound: bytes, offset: int) -> bytes:
    """The bytes with one of them changed."""
    return sound[:offset] + bytes([sound[offset] ^ random.Random(offset).randrange(1, 256)]) + sound[offset + 1 :]


def plain(path: Path) -> tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Attributes of the root, and for each segment its attributes and arrays; ids as a list of str."""
    if path.suffix == ".zarr":
        group = zarr.open_group(path, mode="r")
        members = [group["segments"][name] for name in sorted(group["segments"].group_keys())]
        return dict(group.attrs), [
            (dict(s.attrs), {k: a[:].tolist() if k == "ids" else a[:] for k, a in s.arrays()}) for s in members
        ]
    with h5py.File(path) as file:
        attributes = dict(file.attrs) | {
            k: json.loads(file.attrs[k]) for k in ("fingerprint", "vad_names", "provenance")
        }
        members = [file["segments"][name] for name in sorted(file["segments"])]
        return attributes, [
            (dict(s.attrs), {k: a.asstr()[:].tolist() if k == "ids" else a[:] for k, a in s.items()}) for s in members
        ]


def plainly(path: Path) -> dict[str, Record]:
    """What plain zarr or h5py says that a cache holds, in its order; the first of two equal ids counts."""
    found: dict[str, Record] = {}
    for _, arrays in plain(path)[1]:
        for i, clip_id in enumerate(arrays["ids"]):
            rows = slice(arrays["offsets"][i], arrays["offsets"][i + 1])
            numbers = {n: arrays[n][i if n == "vad_pooled" else rows] if n in arrays else None for n in NUMBERS}
            found.setdefault(clip_id, record(Clip(clip_id, seconds=float(arrays["seconds"][i]), **numbers)))
    return found


def spoil(path: Path, clip_id: str, part: str = "frames", header: Header | None = None) -> None:
    """Change a byte of a clip, wherever the cache holds it first."""
    header = header or make_header()
    stored = header.stored(clip_of(header, clip_id))
    needle = getattr(stored, part).tobytes()
    file = next(f for f in files_of(path) if needle in f.read_bytes())
    content = file.read_bytes()
    file.write_bytes(flipped(content, content.index(needle)))


for function in (
    make_header,
    make_clip,
    clip_of,
    make_cache,
    record,
    expected,
    contents,
    folder_of,
    files_of,
    state_of,
    beside,
    copied,
    flipped,
    plain,
    plainly,
    spoil,
):
    # Test modules cannot import a conftest; each function is a fixture of its own name instead.
    fixture = pytest.fixture(name=function.__name__, scope="session")(lambda function=function: function)
    globals()[f"_{function.__name__}"] = fixture


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


@pytest.fixture(scope="session", params=SUFFIXES)
def three_segments(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the clips a to f in segments of two and a block, for reading only."""
    return Path(make_cache(tmp_path_factory.mktemp("three") / f"features{request.param}", "abcdef", per_segment=2))


@pytest.fixture
def three(three_segments: Path, tmp_path: Path) -> Path:
    """The same once more, to change and to damage."""
    return copied(three_segments, tmp_path / three_segments.name)


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


def count_zarr_steps(step: Callable[[Any, str], None]) -> None:
    """Calls with which a Zarr cache changes the disk."""
    for name in ("unlink", "rmdir"):
        step(os, name)
    step(zarr.storage.LocalStore, "set")


def count_hdf5_steps(step: Callable[[Any, str], None]) -> None:
    """Calls with which an HDF5 cache does: those on its folder, and those that seal the file."""
    count_zarr_steps(step)
    for name in ("fsync", "rename", "replace"):
        step(os, name)
    for kind, name in ((h5py.Group, "copy"), (h5py.Group, "create_dataset"), (h5py.Dataset, "__setitem__")):
        step(kind, name)


def die_at_step(number: int, suffix: str) -> None:
    """Let this process die at the n-th change of the disk, with half of the bytes written where it is a write."""
    taken = [0]

    def half_done(name: str, *arguments: Any) -> None:
        if name == "set":  # zarr writes a temporary file and renames it
            store, key, value = arguments
            file = (store.root / key).with_suffix(f".{'0123' * 8}.partial")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(value.to_bytes()[: len(value) // 2])

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def step(*arguments: Any, **options: Any) -> Any:
            taken[0] += 1
            if taken[0] == number:
                half_done(name, *arguments)
                os._exit(9)
            return real(*arguments, **options)

        setattr(owner, name, step)

    (count_zarr_steps if suffix == ".zarr" else count_hdf5_steps)(counted)


@pytest.fixture
def dies(fork: Callable[..., int], exit_code: Callable[[int], int], faults: Any) -> Callable[..., bool]:
    def dies(die_at: int, change: Callable[..., object], path: Path, *arguments: object) -> bool:
        """Change a cache in a child that dies at a step; False where it got to its end before."""

        def run() -> None:
            die_at_step(die_at, path.suffix)
            change(path, *arguments)

        code = exit_code(fork(run))
        assert code in (0, 9)
        faults.count("crash steps", code == 9)
        return code == 9

    return dies
