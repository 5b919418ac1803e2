"""The folder of a run: what it holds, and whether it belongs to the run that is asked for.

config.toml             all settings, resolved, what the run was made from and with, the licence of its backbone
metrics.jsonl           one line per epoch
best.safetensors        weights of the best epoch, or their moving average
last.pt                 everything needed to resume exactly where a run stopped; a finished run does without
missing_streams.csv     where clips lack some of the streams: which lacks which
predictions_valid.csv   (and predictions_test.csv) from the best weights, header as in the labels
curves.svg, .png        loss and validation Pearson by epoch (`train_head.reports.figures`)
scatter_valid.svg, .png (and scatter_test) predictions against labels
traces_valid.svg, .png  (and traces_test) with labels per frame: both over time (`train_head.reports.traces`)
README.md               model card
features.toml, model.safetensors, config.json   of a fine-tuned run: its backbone (`emi.finetuning`)
transform.safetensors   where the features are derived: what made them of extracted ones (`train_head.runs.inputs`)
tensorboard/            where asked for: the epochs as TensorBoard events (`train_head.reports.trackers`)
all/                    where asked for: the run folder of the training on all clips, without validation

A folder of several runs (`train_head.protocols`) holds config.toml, README.md and the mean of their predictions, and

seed-0/, fold-0/, …     the run folders
ensemble.toml           the runs whose predictions are averaged, written once all are finished
summary.json            the figures of each, their spread, and intervals of what they predict together
predictions_folds.csv   of folds: every clip as predicted by the run that did not see it; labels_folds.csv to score it
traces_folds.svg, .png  of folds with labels per frame: those labels and predictions over time
folds.csv               of folds: which clip was in which
"""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
import torch
from safetensors.torch import load_file

from cache.system.atomic_file import replacing, write_atomically
from cache.system.locks import HeldError, Lock
from cache.version import version
from train_head.errors import RunFolderError
from train_head.runs.changes import Changes, features_by_stream

CONFIG, METRICS, BEST, LAST, CARD = "config.toml", "metrics.jsonl", "best.safetensors", "last.pt", "README.md"
MISSING_STREAMS = "missing_streams.csv"
FEATURES = "features.toml"
"""Of a fine-tuned run: the table [features] that is known once its backbone is finished, which lies beside it."""
HERE = "."
"""As the source of features: the backbone in the run folder itself."""
_RESTORE = "restore it from a copy, or train into a new --out"
ENSEMBLE = "ensemble.toml"
"""In a folder of several runs: `members`, the folders of the runs whose predictions are averaged."""


def prepare_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Create the folder, or check that it holds the same run; several processes may do so at once.

    Paths are recorded and not compared: what was read is compared by its hash.

    Raises:
        RunFolderError: it holds another run, naming what was changed (`train_head.runs.changes`), or something else.
    """
    taken = folder.exists() and (not folder.is_dir() or set(folder.iterdir()) - set(folder.glob(f"{CONFIG}.*.tmp")))
    if not (folder / CONFIG).is_file():  # looked for last, since another process may be making the folder
        if taken:
            raise RunFolderError(f"{folder} exists and is no run folder (it has no {CONFIG}); choose a new --out")
        folder.mkdir(parents=True, exist_ok=True)
        _write_once(folder / CONFIG, tomli_w.dumps(config).encode())
    changes = Changes(read_config_file(folder), config)  # also of jobs that began at the same moment
    if changes:
        raise RunFolderError(f"{folder} holds another run: {changes}. {changes.advice}")


def _write_once(path: Path, data: bytes) -> None:
    """Write a file whole unless it is there; one of another process is never replaced, for it may be locked."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_config_file(folder: Path) -> dict[str, Any]:
    """Read the run's config.toml.

    Raises:
        RunFolderError: there is none.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RunFolderError(
            f"{folder} is no run folder: it has no {CONFIG}; make one with `emi train-head --out {folder}`"
        )
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); {_RESTORE}") from error


def versions() -> dict[str, str]:
    """Return the versions that a run is made with: [versions] of its config.toml, recorded and not compared."""
    return {
        "emi": version(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def other_versions(folder: Path) -> str:
    """Return a sentence where a run was begun under other versions of emi or torch; empty where it was not."""
    began, now = read_config_file(folder).get("versions", {}), versions()
    differing = [name for name in ("emi", "torch") if name in began and began[name] != now[name]]
    if not differing:
        return ""
    there, here = (" and ".join(f"{name} {of[name]}" for name in differing) for of in (began, now))
    return f"{folder} was begun with {there}, and continues with {here}: its figures may differ in their last digits"


def read_features(folder: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a run's head was trained on, by stream: the tables [features], and features.toml of a fine-tuned run.

    Raises:
        RunFolderError: the run is not finished.
    """
    cached = {name: dict(table) for name, table in features_by_stream(config.get("features", {})).items()}
    if cached and "backbone" not in config:
        return cached
    path = folder / FEATURES
    if not path.is_file() or not (folder / BEST).is_file():
        raise RunFolderError(f"{folder} is not finished; run the same `emi finetune` command to the end")
    learned = dict(features_by_stream(tomllib.loads(path.read_text(encoding="utf-8"))))
    for features in learned.values():
        features["fingerprint"]["backbone"] = folder.resolve().name  # as the folder is called now
    return dict(sorted((cached | learned).items()))


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write last.pt in one atomic step."""
    with replacing(folder / LAST) as temporary, temporary.open("wb") as file:
        torch.save(dict(state), file)  # a path would hide that the disk is full behind an error of torch's own


def load_state(folder: Path) -> dict[str, Any] | None:
    """Read last.pt, or None where the run has not finished an epoch."""
    path = folder / LAST
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may raise anything
        raise RunFolderError(f"{path} is damaged, and the run cannot resume from it; {_RESTORE}") from error
    return state


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that was trained to the end: its model card is written last."""
    return all((folder / name).is_file() for name in (CONFIG, METRICS, BEST, CARD))


def read_history(folder: Path) -> list[dict[str, Any]]:
    """Read the records of metrics.jsonl."""
    return [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]


def write_history(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl whole where it differs, so that it never disagrees with last.pt."""
    path, content = folder / METRICS, "".join(json.dumps(record) + "\n" for record in history).encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a prepared folder while a run is trained into it; the system drops it when the process dies.

    Args:
        folder: of the run.
        wait: for another process that holds it, which is for what takes no time.

    Raises:
        RunFolderError: another process holds it.
    """
    lock = Lock(folder / CONFIG)
    try:
        lock.take(wait=wait)
    except HeldError as held:
        raise RunFolderError(
            f"another process trains into {folder}{held}; wait for it, or choose a new --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def load_best(folder: Path) -> dict[str, torch.Tensor]:
    """Load the weights of the best epoch.

    Raises:
        RunFolderError: they are missing or damaged.
    """
    path = folder / BEST
    try:
        return load_file(path)
    except Exception as error:
        raise RunFolderError(f"{path} is {'damaged' if path.is_file() else 'missing'}; {_RESTORE}") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes; of a folder, of the names and bytes of its text files."""
    place = Path(path)
    if not place.is_dir():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(place.rglob("*.txt")):
        digest.update(f"{file.relative_to(place).as_posix()}\0{file_sha256(file)}\n".encode())
    return digest.hexdigest()
