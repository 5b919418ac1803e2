"""Fixtures that several suites share: spoken-like audio files, a small labelled data set, and a count of faults."""

import csv
import os
import signal
import wave
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import emi  # first, so that its OpenMP setting precedes torch

assert emi.__all__


def write_wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> None:
    """Write (samples,) float in [-1, 1] as 16-bit PCM with the standard library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def voice(seconds: float, pitch: float, loudness: float, rng: np.random.Generator, rate: int = 16_000) -> np.ndarray:
    """A buzz with harmonics, syllable-like swells and noise."""
    t = np.arange(round(seconds * rate)) / rate
    buzz = sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 12))
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    return loudness * 0.2 * buzz * swell + 0.003 * rng.normal(size=len(t))


class Faults:
    """Faults that tests injected into caches, by kind, and the committed clips that did not come through."""

    def __init__(self) -> None:
        self.injected: Counter[str] = Counter()
        self.lost = 0

    def count(self, kind: str, number: int = 1) -> None:
        """Note faults of a kind: kills, crash steps, flips, cuts (truncated or deleted files), full disks."""
        self.injected[kind] += number

    def survived(self, committed: Mapping[str, object], found: Mapping[str, object]) -> None:
        """Compare what was committed with what is there after recovery, and fail where a clip is missing or changed."""
        lost = [clip_id for clip_id, clip in committed.items() if found.get(clip_id) != clip]
        self.lost += len(lost)
        assert not lost


FAULTS = pytest.StashKey[Faults]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FAULTS] = Faults()
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # a shell's background job; commands that tests start inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run in several processes, each hands its count to the first."""
    if hasattr(session.config, "workeroutput"):
        faults = session.config.stash[FAULTS]
        session.config.workeroutput["faults"] = (dict(faults.injected), faults.lost)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    injected, lost = getattr(node, "workeroutput", {}).get("faults", ({}, 0))
    faults = node.config.stash[FAULTS]
    faults.injected.update(injected)
    faults.lost += lost


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    faults = config.stash[FAULTS]
    if faults.injected:
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(faults.injected.items()))
        line = f"faults injected: {faults.injected.total()} ({kinds}), clips lost: {faults.lost}"
        terminalreporter.write_line(line, red=bool(faults.lost), green=not faults.lost)


@pytest.fixture(scope="session")
def faults(request: pytest.FixtureRequest) -> Faults:
    """Where tests note the faults that they inject, and compare what came through."""
    return request.config.stash[FAULTS]


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `audio/` of 40 short clips with train and valid CSVs: Joy sets the pitch, Calm the loudness."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(7)
    rows = []
    for i in range(40):
        joy, calm = rng.uniform(size=2).round(3)
        write_wav(root / "audio" / f"{i:05d}.wav", voice(rng.uniform(0.3, 1.2), 100 + 200 * joy, 1 - 0.9 * calm, rng))
        rows.append([i, joy, calm])
    for name, part in (("train", rows[:28]), ("valid", rows[28:])):
        with (root / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["Filename", "Joy", "Calm"], *part])
    return root


@pytest.fixture(scope="session")
def labelled_cache(labelled: Path) -> Path:
    """Its silero features."""
    path = labelled / "features.zarr"
    emi.extract(labelled / "audio", path)
    return path


@pytest.fixture(scope="session")
def ravdess() -> Path:
    """Real labelled speech: the folder that EMI_RAVDESS names (audio/, train_split.csv, valid_split.csv)."""
    folder = os.environ.get("EMI_RAVDESS")
    if not folder:
        pytest.skip("EMI_RAVDESS does not name a folder with the RAVDESS clips")
    return Path(folder)
