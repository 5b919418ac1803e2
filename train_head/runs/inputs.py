"""What runs are made from: label files, and the splits that they give on cached features (or on decoded media)."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import load, save

from cache.derive.derived import describe, transform_of
from cache.derive.transform import Transform
from cache.errors import StaleCacheError
from cache.format import AUDIO, Header
from cache.licences import LICENCE, Licence, all_of, licence_of
from cache.paths import StrPath
from cache.reader import FeatureCache
from cache.system.atomic_file import write_atomically
from train_head.data.gather import Stores, gather, open_stores, resolve_splits
from train_head.data.groups import check_disjoint
from train_head.data.label_format import LabelFormat
from train_head.data.labels import Labels
from train_head.data.links import GROUPS, linked, read_links
from train_head.data.names import UNNAMED, Caches, by_stream
from train_head.data.raters import Agreement, agreement
from train_head.data.reading import read_any_labels, read_beside
from train_head.data.splits import Split, lacking_streams, misaligned_clips
from train_head.errors import LabelError, RunFolderError, TrainSettingsError
from train_head.reports.tables import licence_line
from train_head.training.loop import TrainingLoop
from train_head.training.settings import TrainSettings
from train_head.training.trainer import Trainer

TRANSFORM = "transform.safetensors"
"""In the folder of a run on derived features: their transform, so that prediction can start from media."""


def transform_file(stream: str) -> str:
    """Return the name of the file that holds the transform of a stream."""
    return TRANSFORM if stream == UNNAMED else f"transform-{stream}.safetensors"


@dataclass(frozen=True, kw_only=True)
class LabelFiles:
    """The label files of a training, and how they are read.

    Attributes:
        files: label CSVs by split: "train", perhaps "valid" and "test".
        format: their columns and scale.
        skip_missing: leave out labelled clips of which there are no features (or media), or not those of a required
            stream, instead of refusing.
        require: names of streams that every labelled clip must have.
        ids: how ids of labels become those of a stream: `NAME=REGEX`, or a preset; see `train_head.data.links`.
    """

    files: Mapping[str, StrPath]
    format: LabelFormat = field(default_factory=LabelFormat)
    skip_missing: bool = False
    require: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()

    @classmethod
    def named(
        cls,
        train: StrPath,
        valid: StrPath | None = None,
        test: StrPath | None = None,
        *,
        format: LabelFormat | None = None,
        skip_missing: bool = False,
        require: Sequence[str] = (),
        ids: Sequence[str] = (),
    ) -> "LabelFiles":
        """Make them of the paths that are given; with a preset of ids, clips of one source are a group."""
        files = {name: path for name, path in (("train", train), ("valid", valid), ("test", test)) if path is not None}
        form = format or LabelFormat()
        if form.group_by is None:
            form = replace(form, group_by=next((GROUPS[preset] for preset in ids if preset in GROUPS), None))
        return cls(files=files, format=form, skip_missing=skip_missing, require=tuple(require), ids=tuple(ids))

    def read(self) -> dict[str, Labels]:
        """Read them, all with the targets of "train".

        Clips of "train" without any label are left out. A "test" file may lack the targets, the groups and the raters.

        Raises:
            LabelError: a file is missing or wrong, or has no labels, or no training clip has one of some target.
        """
        train = read_any_labels(self.files["train"], self.format)
        if not train.names:
            raise LabelError(f"{train.path} has no target columns beside Filename")
        empty = [name for name, column in zip(train.names, train.values.T, strict=True) if np.isnan(column).all()]
        if empty:
            raise LabelError(
                f"{train.path} has no label in the column {empty[0]!r}; name the columns that are labels with --targets"
            )
        form = replace(self.format, targets=train.names)
        others = ((name, path) for name, path in self.files.items() if name != "train")
        return {"train": train.labelled(), **{name: read_beside(name, path, form, train) for name, path in others}}


@dataclass(frozen=True, kw_only=True)
class StreamInfo:
    """What is known of a stream.

    Attributes:
        fingerprint: what decides the features, as in a cache's header.
        row_seconds: time from one row to the next; None where rows have times.
        dim: features per row that the head sees, VAD included.
        note: a sentence for the model card on how they were made, or nothing.
        licence: of the backbone's weights.
    """

    fingerprint: Mapping[str, Any]
    row_seconds: float | None
    dim: int
    note: str = ""
    licence: Licence

    @property
    def backbone(self) -> str:
        """Name of the backbone."""
        return str(self.fingerprint["backbone"])


class DataSource(Protocol):
    """Where the rows of the splits come from."""

    @property
    def streams(self) -> Mapping[str, StreamInfo]:
        """The streams, by name."""

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return its part of a run's config.toml; "data" is merged with what the label files give."""

    def prepare(self, folder: Path) -> None:
        """Write beside config.toml what a run folder must hold from the start."""

    def make_loop(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> TrainingLoop:
        """Make a training loop on splits of this source."""


class CachedFeatures:
    """Features of caches: a `DataSource`.

    Args:
        caches: by stream, the paths, as given.
        stores: the same, opened; those of a stream have equal fingerprints.
    """

    def __init__(self, caches: Mapping[str, Sequence[StrPath]], stores: Stores) -> None:
        self._caches, self.stores = caches, stores
        self.streams = {name: _stream_info(opened[0]) for name, opened in stores.items()}

    def tables(self) -> dict[str, dict[str, Any]]:
        """See `DataSource`; a stream without a name has no tables of its own."""
        features = {name: self._features(name) for name in self.stores}
        places = {name: [_place(path) for path in paths] for name, paths in self._caches.items()}
        licence = {LICENCE: all_of([info.licence for info in self.streams.values()]).to_dict()}
        if UNNAMED in features:
            return {"data": {"caches": places[UNNAMED]}, "features": features[UNNAMED], **licence}
        return {"data": {"caches": places}, "features": features, **licence}

    def _features(self, name: str) -> dict[str, Any]:
        header = self.stores[name][0].header
        features = features_table(header, header.provenance.get("source", ""))
        transform = stored_transform(self.stores[name])
        if transform is not None:
            features["transform_sha256"] = hashlib.sha256(transform).hexdigest()
        return features

    def prepare(self, folder: Path) -> None:
        """See `DataSource`: what the features were derived with, where they are derived."""
        for name, stores in self.stores.items():
            transform, place = stored_transform(stores), folder / transform_file(name)
            if transform is not None and not place.is_file():
                write_atomically(place, transform)

    def of_streams(self, names: Sequence[str]) -> "CachedFeatures":
        """Return some of the streams."""
        return CachedFeatures({n: self._caches[n] for n in names}, {n: self.stores[n] for n in names})

    def make_loop(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> Trainer:
        """See `DataSource`.

        Raises:
            TrainSettingsError: the precision is one of fine-tuning.
        """
        if settings.precision == "fp16":
            raise TrainSettingsError("precision fp16 is for `emi finetune` on a GPU; heads train in fp32 or bf16")
        return Trainer(settings, train, valid, folder)


def features_table(header: Header, source: str) -> dict[str, Any]:
    """Return what a run records of the features of a stream.

    Args:
        header: of their cache, or of the one that would hold them.
        source: where their backbone is.
    """
    return {
        "dim": header.dim,
        "vad_names": list(header.vad_names),
        **({} if header.hop_seconds is None else {"hop_seconds": header.hop_seconds}),
        **({} if header.modality == AUDIO else {"modality": header.modality}),
        **({"optional": list(header.optional)} if header.optional else {}),
        "source": source,
        **({"revision": header.provenance["revision"]} if "revision" in header.provenance else {}),
        "fingerprint": dict(header.fingerprint),
    }


def _stream_info(store: FeatureCache) -> StreamInfo:
    header = store.header
    recipe = header.fingerprint.get("derived")
    return StreamInfo(
        fingerprint=header.fingerprint,
        row_seconds=header.hop_seconds,
        dim=header.width,
        note=f"These are derived by `emi cache derive`: {describe(recipe)}." if recipe else "",
        licence=licence_of(header),
    )


def _place(path: StrPath) -> str:
    return os.path.abspath(path) if "://" not in os.fspath(path) else os.fspath(path)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs are made from, opened and checked, for any number of runs.

    Attributes:
        source: where the rows of the splits come from.
        label_files: the label files, and how they were read.
        labels: what is in them, by split.
        splits: the same with their rows: features, or samples.
        protocol: what a run of several is within them; the table `[protocol]` of its config.toml.
    """

    source: DataSource
    label_files: LabelFiles
    labels: Mapping[str, Labels]
    splits: Mapping[str, Split]
    protocol: Mapping[str, Any] = field(default_factory=dict)

    def of_streams(self, names: Sequence[str]) -> "Inputs":
        """Return the same clips with some of the streams of cached features."""
        assert isinstance(self.source, CachedFeatures)
        splits = {split: part.of_streams(names) for split, part in self.splits.items()}
        return replace(self, source=self.source.of_streams(names), splits=splits)

    @property
    def overlap(self) -> str:
        """A sentence where clips are both trained and validated on; empty where none are."""
        train, valid = self.labels["train"], self.labels.get("valid")
        both = len(set(train.ids) & set(valid.ids)) if valid is not None else 0
        if not both:
            return ""
        return (
            f"{both} of the {len(valid or ())} validation clips are training clips as well: the validation figures say "
            "nothing about new clips"
        )

    @property
    def lacking(self) -> list[str]:
        """Sentences on streams that clips lack, and on label rows that are not the frames of a video."""
        return [*lacking_streams(self.splits), *misaligned_clips(self.splits)]

    @property
    def skipped(self) -> int:
        """Number of labelled clips that were left out because there is nothing of them, or not what is required."""
        return sum(len(self.labels[name]) - len(split) for name, split in self.splits.items())


def backbones(inputs: Inputs) -> str:
    """Return the names of the backbones, for texts."""
    return " and ".join(f"`{info.backbone}`" for info in inputs.source.streams.values())


def licence_text(inputs: Inputs) -> str:
    """Return a line per backbone on whether its products may be used commercially."""
    return "\n".join(licence_line(info.backbone, info.licence) for info in inputs.source.streams.values())


def check_disjoint_splits(labels: Mapping[str, Labels]) -> None:
    """Refuse training and validation clips of common groups, where groups were asked for.

    Raises:
        LabelError: as `train_head.data.groups.check_disjoint`.
    """
    groups = [labels[name].groups for name in ("train", "valid")]
    if groups[0] is not None and groups[1] is not None:
        check_disjoint(groups[0], groups[1])


def gather_inputs(caches: Caches, label_files: LabelFiles, *, shared: StrPath | None = None) -> Inputs:
    """Read the labels, open the caches, load the features.

    Args:
        caches: one cache, several with equal fingerprints that together hold the clips, or these by stream.
        label_files: which clips, and their labels.
        shared: folder of memory maps that all processes with the same inputs share; of one cache per stream.

    Raises:
        LabelError, CacheError: a file or a clip is missing or wrong.
    """
    named = by_stream(caches)
    labels = label_files.read()
    stores = linked(open_stores(named), read_links(label_files.ids))
    labels = resolve_splits(stores, labels)
    splits = gather(
        stores,
        labels,
        skip_missing=label_files.skip_missing,
        require=label_files.require,
        shared=shared,
        fps=label_files.format.fps,
    )
    return Inputs(source=CachedFeatures(named, stores), label_files=label_files, labels=labels, splits=splits)


def rater_agreement(labels: Labels) -> Agreement | None:
    """Return how well the raters of a split agree; None where no raters were asked for."""
    return None if labels.ratings is None else agreement(labels.ratings, labels.names)


def stored_transform(stores: Sequence[FeatureCache]) -> bytes | None:
    """Return the arrays with which caches were derived, as a safetensors file; None where nothing was fitted for them.

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


def load_transform(folder: Path, stream: str, features: Mapping[str, Any]) -> Transform | None:
    """The transform of a run; None where it was trained on extracted features.

    Args:
        folder: run folder.
        stream: its name.
        features: its table `[features]` in config.toml.

    Raises:
        RunFolderError: the file is gone, or is not the one the head was trained with.
    """
    recipe = features["fingerprint"].get("derived")
    if recipe is None:
        return None
    if "transform_sha256" not in features:
        return Transform.from_arrays({}, recipe)
    path = folder / transform_file(stream)
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != features["transform_sha256"]:
        raise RunFolderError(
            f"{path} is {'damaged' if content else 'missing'}, without which the features of media cannot be derived; "
            "run `emi train-head` into a new folder, or restore the file from a copy"
        )
    return Transform.from_arrays(load(content), recipe)
