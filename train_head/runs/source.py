"""Where the rows of splits come from, and what trains on them: cached features, or decoded media (`emi.finetuning`)."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors.numpy import load, save

from cache.derive.derived import describe, transform_of
from cache.derive.transform import Transform
from cache.errors import StaleCacheError
from cache.licences import LICENCE, Licence, licence_of
from cache.paths import StrPath
from cache.reader import FeatureCache
from cache.system.atomic_file import write_atomically
from train_head.data.splits import Split
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.training.loop import TrainingLoop
from train_head.training.settings import TrainSettings
from train_head.training.trainer import Trainer

TRANSFORM = "transform.safetensors"
"""In the folder of a run on derived features: their transform, so that prediction can start from media."""


class DataSource(Protocol):
    """Where the rows of the splits come from.

    Attributes:
        fingerprint: what decides the features, as in a cache's header.
        row_seconds: time from one row of a split to the next.
        dim: features per frame that the head sees, VAD included.
        note: a sentence for the model card on how they were made, or nothing.
        licence: of the backbone's weights.
    """

    @property
    def fingerprint(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def row_seconds(self) -> float: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def note(self) -> str: ...  # noqa: D102

    @property
    def licence(self) -> Licence: ...  # noqa: D102

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return its part of a run's config.toml; "data" is merged with what the label files give."""

    def prepare(self, folder: Path) -> None:
        """Write beside config.toml what a run folder must hold from the start."""

    def training(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> TrainingLoop:
        """Make a training loop on splits of this source."""


class CachedFeatures:
    """Features of caches with equal fingerprints: a `DataSource` whose rows are frames.

    Args:
        paths: the caches, as given.
        stores: the same, opened.
    """

    def __init__(self, paths: Sequence[StrPath], stores: Sequence[FeatureCache]) -> None:
        self._paths, self._stores, self._header = paths, stores, stores[0].header
        self.fingerprint: Mapping[str, Any] = stores[0].fingerprint
        self.row_seconds = stores[0].hop_seconds
        self.dim = self._header.dim + len(self._header.vad_names)
        self.licence = licence_of(self._header)
        recipe = self.fingerprint.get("derived")
        self.note = f"These are derived by `emi cache derive`: {describe(recipe)}." if recipe else ""

    def tables(self) -> dict[str, dict[str, Any]]:
        """See `DataSource`."""
        header = self._header
        features: dict[str, Any] = {
            "dim": header.dim,
            "vad_names": list(header.vad_names),
            "hop_seconds": header.hop_seconds,
            "source": header.provenance.get("source", ""),
            **({"revision": header.provenance["revision"]} if "revision" in header.provenance else {}),
            "fingerprint": dict(header.fingerprint),
        }
        transform = stored_transform(self._stores)
        if transform is not None:
            features["transform_sha256"] = hashlib.sha256(transform).hexdigest()
        places = [os.path.abspath(p) if "://" not in os.fspath(p) else os.fspath(p) for p in self._paths]
        return {"data": {"caches": places}, "features": features, LICENCE: self.licence.to_dict()}

    def prepare(self, folder: Path) -> None:
        """See `DataSource`: what the features were derived with, where they are derived."""
        transform = stored_transform(self._stores)
        if transform is not None and not (folder / TRANSFORM).is_file():
            write_atomically(folder / TRANSFORM, transform)

    def training(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> Trainer:
        """See `DataSource`.

        Raises:
            TrainSettingsError: the precision is one of fine-tuning.
        """
        if settings.precision == "fp16":
            raise TrainSettingsError("precision fp16 is for `emi finetune` on a GPU; heads train in fp32 or bf16")
        return Trainer(settings, train, valid, folder)


def stored_transform(stores: Sequence[FeatureCache]) -> bytes | None:
    """The arrays with which caches were derived, as a safetensors file; None where nothing was fitted for them.

    Raises:
        StaleCacheError: the caches, though fitted on the same clips, have others: on two machines, rounding may differ.
        CacheError: a transform is damaged.
    """
    arrays = [{} if (transform := transform_of(store)) is None else transform.to_arrays() for store in stores]
    contents = [save(a) if a else None for a in arrays]
    for store, content in zip(stores, contents, strict=True):
        if content != contents[0]:
            raise StaleCacheError(
                f"{stores[0].path} and {store.path} were derived with transforms that are not equal to the last bit; "
                "derive one cache from all their clips"
            )
    return contents[0]


def load_transform(folder: Path, features: Mapping[str, Any]) -> Transform | None:
    """The transform of a run; None where it was trained on extracted features.

    Args:
        folder: run folder.
        features: the `[features]` table of its config.toml.

    Raises:
        RunFolderError: the file is gone, or is not the one the head was trained with.
    """
    recipe = features["fingerprint"].get("derived")
    if recipe is None:
        return None
    if "transform_sha256" not in features:
        return Transform.from_arrays({}, recipe)
    path = folder / TRANSFORM
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != features["transform_sha256"]:
        raise RunFolderError(
            f"{path} is {'damaged' if content else 'missing'}, without which the features of media cannot be derived; "
            "run `emi train-head` into a new folder, or restore the file from a copy"
        )
    return Transform.from_arrays(load(content), recipe)
