"""What splits are made of, and how a run is trained on it: cached features here, decoded media in `emi.finetuning`."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.derive.derived import describe
from cache.licences import LICENCE, Licence, licence_of
from cache.paths import StrPath
from cache.reader import FeatureCache
from train_head.data.splits import Split
from train_head.errors import TrainSettingsError
from train_head.runs.transform import save_transform, stored_transform
from train_head.training.settings import TrainSettings
from train_head.training.trainer import OnEpoch, Record, Trainer


class Training(Protocol):
    """One run that trains itself into its folder; see `train_head.training.trainer.Trainer`."""

    history: list[Record]

    @property
    def best_epoch(self) -> int:
        """Number (from 1) of the epoch that is kept."""

    def restore(self) -> None:
        """Take up the state that the folder holds, if any."""

    def fit(self, on_epoch: OnEpoch | None = None) -> None:
        """Train to the end."""

    def load_best(self) -> None:
        """Take the weights that the run kept."""

    def known(self, predictions: Path) -> NDArray[np.float32] | None:
        """What is in a file of predictions that need not be computed again, or None."""

    def predict(self, split: Split) -> NDArray[np.float32]:
        """(clips, targets) intensities, in the order of the split."""


class Material(Protocol):
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
        """Its part of a run's config.toml; "data" is merged with what the label files give."""

    def prepare(self, folder: Path) -> None:
        """Put beside config.toml what a run folder must hold from the start."""

    def trainer(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> Training:
        """A training on splits of this material."""


@dataclass(frozen=True)
class CachedFeatures:
    """Features of caches with equal fingerprints.

    Attributes:
        paths: the caches, as given.
        stores: the same, opened.
    """

    paths: Sequence[StrPath]
    stores: Sequence[FeatureCache]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """See `Material`."""
        return self.stores[0].fingerprint

    @property
    def row_seconds(self) -> float:
        """See `Material`: a row is a frame."""
        return self.stores[0].hop_seconds

    @property
    def dim(self) -> int:
        """See `Material`."""
        header = self.stores[0].header
        return header.dim + len(header.vad_names)

    @property
    def note(self) -> str:
        """See `Material`."""
        recipe = self.fingerprint.get("derived")
        return f"These are derived by `emi cache derive`: {describe(recipe)}." if recipe else ""

    @property
    def licence(self) -> Licence:
        """See `Material`."""
        return licence_of(self.stores[0].header)

    def tables(self) -> dict[str, dict[str, Any]]:
        """See `Material`."""
        header = self.stores[0].header
        features: dict[str, Any] = {
            "dim": header.dim,
            "vad_names": list(header.vad_names),
            "hop_seconds": header.hop_seconds,
            "source": header.provenance.get("source", ""),
            **({"revision": header.provenance["revision"]} if "revision" in header.provenance else {}),
            "fingerprint": dict(header.fingerprint),
        }
        transform = stored_transform(self.stores)
        if transform is not None:
            features["transform_sha256"] = hashlib.sha256(transform).hexdigest()
        places = [os.path.abspath(p) if "://" not in os.fspath(p) else os.fspath(p) for p in self.paths]
        return {"data": {"caches": places}, "features": features, LICENCE: self.licence.to_dict()}

    def prepare(self, folder: Path) -> None:
        """See `Material`: what the features were derived with, where they are derived."""
        save_transform(folder, self.stores)

    def trainer(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> Trainer:
        """See `Material`.

        Raises:
            TrainSettingsError: the precision is one of fine-tuning.
        """
        if settings.precision == "fp16":
            raise TrainSettingsError("precision fp16 is for `emi finetune` on a GPU; heads train in fp32 or bf16")
        return Trainer(settings, train, valid, folder)
