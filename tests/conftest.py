"""Fixtures that several suites share: spoken-like audio, a small labelled data set, checkpoints, a count of faults."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import wave
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from warm_python import python

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


@pytest.fixture(autouse=True)
def _threads_are_left_as_they_were() -> Iterator[None]:
    """Torch's threads decide the last bits of a matrix product, which tests compare with other processes'."""
    torch = sys.modules.get("torch")
    before = torch and torch.get_num_threads()
    yield
    if torch and torch.get_num_threads() != before:
        found = torch.get_num_threads()
        torch.set_num_threads(before)
        pytest.fail(f"the test left {found} torch threads where it had found {before}")


@pytest.fixture
def warm_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python processes that the code under test starts are forked from one that has imported everything."""
    monkeypatch.setattr(sys, "executable", python())
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(python()))


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


LAYER_NORM = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
"""What sets "layer" checkpoints (large) apart from "group" ones (base)."""
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 32,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}


def tiny_model(kind: str, **config):
    """A random, small encoder of the transformers library whose every weight changes its output."""
    import torch
    import transformers

    name = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}[kind]
    torch.manual_seed(0)
    settings = getattr(transformers, f"{name}Config")(**TINY | config)
    model = getattr(transformers, f"{name}Model")(settings).eval()
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("bias") or "norm" in key:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def save_preprocessor(folder: Path, **settings) -> None:
    content = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(content | settings))


def save_audeering(folder: Path) -> tuple[object, object]:
    """A small checkpoint in the layout of audEERING's: .bin, old names, regression head. Returns (encoder, head)."""
    import torch

    model = tiny_model("wav2vec2", **LAYER_NORM, num_hidden_layers=12)
    head = torch.nn.ModuleDict({"dense": torch.nn.Linear(32, 32), "out_proj": torch.nn.Linear(32, 3)})
    head.requires_grad_(False)
    state = {f"wav2vec2.{key}": value for key, value in model.state_dict().items()}
    position = "wav2vec2.encoder.pos_conv_embed.conv."
    for new, old in (("original0", "weight_g"), ("original1", "weight_v")):
        state[position + old] = state.pop(f"{position}parametrizations.weight.{new}")
    state |= {f"classifier.{key}": value for key, value in head.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin")
    labels = ("arousal", "dominance", "valence")
    config = model.config.to_dict() | {
        "architectures": ["Wav2Vec2ForSpeechClassification"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "problem_type": "regression",
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_preprocessor(folder)
    return model, lambda x: head["out_proj"](torch.tanh(head["dense"](x)))


def receptive_field(config) -> int:
    """Samples of one frame by the kernels' positions: 400 for the usual convolutions."""
    reach = np.cumprod([1, *config.conv_stride[:-1]]) * (np.array(config.conv_kernel) - 1)
    return 1 + int(reach.sum())


def alone(model, samples: np.ndarray, normalise: bool = True):
    """(frames, dim): the library on one unpadded clip, below one receptive field zero-padded after normalisation."""
    import torch
    from transformers import Wav2Vec2FeatureExtractor

    extractor = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    values = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
    values = torch.nn.functional.pad(values, (0, max(0, receptive_field(model.config) - values.shape[1])))
    with torch.inference_mode():
        return model(values).last_hidden_state[0]


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """Makers of small checkpoints, and the library's own result for one clip."""
    return SimpleNamespace(
        model=tiny_model,
        save_preprocessor=save_preprocessor,
        save_audeering=save_audeering,
        alone=alone,
        layer_norm=LAYER_NORM,
    )


@pytest.fixture(scope="session")
def gpu():
    """The first CUDA device; a test that asks for it is skipped where torch sees none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device("cuda")


@pytest.fixture(scope="session")
def ravdess() -> Path:
    """Real labelled speech: the folder that EMI_RAVDESS names (audio/, train_split.csv, valid_split.csv)."""
    folder = os.environ.get("EMI_RAVDESS")
    if not folder:
        pytest.skip("EMI_RAVDESS does not name a folder with the RAVDESS clips")
    return Path(folder)


MEGABYTE = 1 << 20


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * MEGABYTE}", "tmpfs", str(disk)]
    if os.getuid() or not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs takes root and the right to mount")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
