"""Where the rows of splits come from, and what trains on them: cached features, or decoded media (`emi.finetuning`)."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cache.derive.derived import describe
from cache.licences import LICENCE, Licence, licence_of
from cache.paths import StrPath
from cache.reader import FeatureCache
from train_head.data.splits import Split
from train_head.errors import TrainSettingsError
from train_head.runs.transform import save_transform, stored_transform
from train_head.training.loop import TrainingLoop
from train_head.training.settings import TrainSettings
from train_head.training.trainer import Trainer


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
        """See `DataSource`."""
        return self.stores[0].fingerprint

    @property
    def row_seconds(self) -> float:
        """See `DataSource`: a row is a frame."""
        return self.stores[0].hop_seconds

    @property
    def dim(self) -> int:
        """See `DataSource`."""
        return self.stores[0].header.width

    @property
    def note(self) -> str:
        """See `DataSource`."""
        recipe = self.fingerprint.get("derived")
        return f"These are derived by `emi cache derive`: {describe(recipe)}." if recipe else ""

    @property
    def licence(self) -> Licence:
        """See `DataSource`."""
        return licence_of(self.stores[0].header)

    def tables(self) -> dict[str, dict[str, Any]]:
        """See `DataSource`."""
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
        """See `DataSource`: what the features were derived with, where they are derived."""
        save_transform(folder, self.stores)

    def training(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> Trainer:
        """See `DataSource`.

        Raises:
            TrainSettingsError: the precision is one of fine-tuning.
        """
        if settings.precision == "fp16":
            raise TrainSettingsError("precision fp16 is for `emi finetune` on a GPU; heads train in fp32 or bf16")
        return Trainer(settings, train, valid, folder)
