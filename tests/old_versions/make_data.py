"""Make the test data of this folder with the code of commit 12941d2; the tests take clips and settings from here.

git worktree add --detach /tmp/at-12941d2 12941d2
PYTHONPATH=/tmp/at-12941d2 python tests/old_versions/make_data.py /tmp/old-versions/data
"""

import csv
import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

CLIPS = [f"{number:05d}" for number in range(8)]
RATE = 16_000
CACHES = ("all.zarr", "half.zarr", "half.h5", "cut_off.h5", "derived.zarr", "half_derived.zarr")
SETTINGS = {"hidden": 8, "epochs": 3, "lr": 0.01, "batch_size": 4, "precision": "fp32", "device": "cpu"}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "finished": ("all.zarr", SETTINGS | {"global_vector": False}),
    "ensemble": ("all.zarr", SETTINGS | {"head": "mlp", "hidden": 4, "seeds": 2}),
    "derived": ("derived.zarr", SETTINGS | {"standardise": True}),
}
"""The cache and the further arguments of `emi.train_head` for each run; "unfinished" has those of "finished"."""
RECIPE: dict[str, Any] = {"pool": 4, "pca": 16, "train_ids": CLIPS[:4]}
"""How the derived caches are derived."""


def write_media(folder: Path, count: int = 8) -> Path:
    """Write clips of 1.0 to 1.2 s by integer arithmetic alone, hence with the same bytes on every machine."""
    folder.mkdir(parents=True)
    for number, name in enumerate(CLIPS[:count]):
        noise = np.frombuffer(random.Random(number).randbytes(2 * (RATE + 457 * number)), "<i2").astype(np.int64)
        t = np.arange(len(noise))
        buzz = sum((t * k * (100 + 23 * number)) % RATE - RATE // 2 for k in (1, 2, 3))
        swell = abs((t * 4) % RATE - RATE // 2)  # a triangle of 4 Hz, 0 to 8000
        samples = buzz * swell * (8 - number % 3) // 65_536 + noise // 128
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(np.clip(samples, -32_768, 32_767).astype("<i2").tobytes())
    return folder


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of the stored frames of each clip."""
    from cache import open_cache

    with open_cache(path) as store:
        return {clip: hashlib.sha256(store[clip].frames.tobytes()).hexdigest() for clip in store.ids}


def labels(data: Path) -> dict[str, Path]:
    """Labels of five clips to train on and of three to validate on, and a list of all eight to predict."""
    return {name: data / f"{name}.csv" for name in ("train", "valid", "test")}


def _write_labels(data: Path) -> None:
    rows = [[name, (3 + 11 * i) % 17 / 16, (5 + 7 * i) % 13 / 12] for i, name in enumerate(CLIPS)]
    head = ["Filename", "Joy", "Calm"]
    tables = {"train": [head, *rows[:5]], "valid": [head, *rows[5:]], "test": [["Filename"], *([n] for n in CLIPS)]}
    for name, path in labels(data).items():
        with path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(tables[name])


def _commit_half(data: Path, media: Path) -> None:
    """Die half way through applying the journal of the commit that adds the third and the fourth clip."""
    import emi

    journal, pwrite = data / "cut_off.h5.journal", os.pwrite

    def pwrite_or_die(descriptor: int, content: bytes, offset: int) -> int:
        if journal.exists():
            pwrite(descriptor, content[: len(content) // 2], offset)
            os._exit(9)
        return pwrite(descriptor, content, offset)

    os.pwrite = pwrite_or_die
    emi.extract(media / "4", data / "cut_off.h5", device="cpu")


def _train_unfinished(data: Path) -> None:
    """Interrupt the run "finished" after the first of its three epochs."""
    from train_head.protocols import run_protocol
    from train_head.settings import resolve_settings

    def interrupt(record: object) -> None:
        raise KeyboardInterrupt

    files, settings = labels(data), resolve_settings(None, **RUNS["finished"][1])
    try:
        run_protocol(
            data / "all.zarr",
            files["train"],
            files["valid"],
            data / "unfinished",
            settings,
            test=files["test"],
            on_epoch=interrupt,
        )
    except KeyboardInterrupt:
        return
    raise RuntimeError("the run was not interrupted")


def _finetune(data: Path, media: Path) -> None:
    """A run with a backbone of its own: wav2vec 2.0 with one layer of 16 numbers and random weights."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    import emi

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = Wav2Vec2Config(**sizes, conv_dim=[8] * 7, num_conv_pos_embeddings=8, initializer_range=0.2)
    backbone = media / "backbone"
    Wav2Vec2Model(config).save_pretrained(backbone)
    Wav2Vec2FeatureExtractor().save_pretrained(backbone)
    files, settings = labels(data), SETTINGS | {"epochs": 1, "head": "mean"}
    settings.pop("hidden")
    places = {"backbone": str(backbone), "audio": media / "decoded", "test": files["test"]}
    emi.finetune(media / "8", files["train"], files["valid"], data / "finetuned", **places, **settings)


def make(data: Path) -> None:
    import emi
    from cache.derive import derive
    from train_head.model import load_head

    data.mkdir(parents=True)
    media, files = data.parent / "media", labels(data)
    for count in (2, 4, 8):
        write_media(media / str(count), count)
    _write_labels(data)
    for count, name in ((8, "all.zarr"), (4, "half.zarr"), (4, "half.h5"), (2, "cut_off.h5")):
        emi.extract(media / str(count), data / name, device="cpu")
    killed = subprocess.run([sys.executable, __file__, str(data), "commit half"], check=False)
    if killed.returncode != 9 or not (data / "cut_off.h5.journal").exists():
        raise RuntimeError("no journal is left")
    for source, target in (("all", "derived"), ("half", "half_derived")):
        derive(data / f"{source}.zarr", data / f"{target}.zarr", **RECIPE)
    _train_unfinished(data)
    for name, (cache, arguments) in RUNS.items():
        emi.train_head(data / cache, files["train"], files["valid"], data / name, test=files["test"], **arguments)
    _finetune(data, media)
    expected: dict[str, Any] = {"frames": {name: digests(data / name) for name in CACHES}, "media": {}, "cache": {}}
    for name in (*RUNS, "finetuned"):
        records = emi.load(data / name).predict(media / "8")
        expected["media"][name] = {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}
    for name, (cache, _) in RUNS.items():
        head = load_head(data / name)
        with emi.open_cache(data / cache) as store:
            expected["cache"][name] = {clip: head.predict(store[clip]).tolist() for clip in CLIPS}
    (data / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    for picture in [*data.rglob("*.svg"), *data.rglob("*.png")]:
        picture.unlink()
    shutil.rmtree(media)


if __name__ == "__main__":
    installed = importlib.metadata.version
    importlib.metadata.version = lambda name: "0.1.0" if name == "emi" else installed(name)  # its name at that time
    if sys.argv[2:] == ["commit half"]:
        _commit_half(Path(sys.argv[1]), Path(sys.argv[1]).parent / "media")
    else:
        make(Path(sys.argv[1]).absolute())
