"""Labelled media as a data source: decoded once, with the backbone loaded anew for every run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from cache.licences import LICENCE, all_of
from cache.paths import StrPath
from emi.finetuning.cached import load_cached
from emi.finetuning.modalities import MODALITIES, Clips, LearnedModality
from emi.finetuning.model import BackboneWithHead
from emi.finetuning.processes import Processes
from emi.finetuning.settings import TABLE, FinetuneSettings
from emi.finetuning.trainer import FinetuneTrainer
from extract.backbones import Identity, Regularisation, load_trainable
from extract.backbones.precision import DTYPES
from extract.faces.image_times import with_videos
from extract.plan import make_header
from extract.sources import Source, find_media
from train_head.data.gather import held_clips, make_split, refuse_foreign, resolve, with_required
from train_head.data.labels import Labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Split
from train_head.data.streams import Stream
from train_head.errors import LabelError, check_known
from train_head.runs.inputs import CachedFeatures, Inputs, LabelFiles, StreamInfo
from train_head.runs.load import TrainedHead
from train_head.runs.run_folder import BEST, file_sha256
from train_head.training.loop import SILENT, Reporter
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class DecodedMedia:
    """Decoded clips and a backbone, perhaps beside cached streams; see `train_head.runs.inputs.DataSource`.

    The rows of the stream whose backbone learns are samples of sound, or pictures of faces.

    Attributes:
        root: where the media are.
        identity: the backbone.
        tuning: how it is trained.
        precision: of the matrix products.
        processes: that share the work.
        init_head: a trained head to start from.
        clips: the decoded clips, once they are decoded.
        clips_sha256: of those that are trained on.
        cached: the other streams.
    """

    root: StrPath
    identity: Identity
    tuning: FinetuneSettings
    precision: str
    processes: Processes
    init_head: TrainedHead | None = None
    clips: Clips | None = None
    clips_sha256: str = ""
    cached: CachedFeatures = field(default_factory=lambda: CachedFeatures({}, {}))

    @property
    def stream(self) -> str:
        """Name of the stream whose backbone learns: its modality where there are others."""
        return self.identity.modality if self.cached.streams else UNNAMED

    @property
    def modality(self) -> LearnedModality:
        """What is decoded of the media, and how."""
        return MODALITIES[self.identity.modality](self.tuning)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Fingerprint of the backbone before it was trained."""
        settings = self.tuning.extraction(self.identity.source)
        return make_header(self.identity, settings, self.precision).fingerprint

    @property
    def note(self) -> str:
        """What the card says of the backbone."""
        if self.tuning.freeze == "backbone" and not self.tuning.lora:
            return "The backbone stayed as it was; the head was trained end to end on it."
        learned = (
            f"adapters of rank {self.tuning.lora} learned" if self.tuning.lora else f"frozen: {self.tuning.freeze}"
        )
        faces = ", with the --fps and --crop that config.toml records" if self.identity.modality == "face" else ""
        return (
            f"The backbone was fine-tuned with the head ({learned}; learning rate {self.tuning.backbone_lr:g}) and "
            f"lies in this folder: `emi extract MEDIA --cache CACHE --backbone THIS_FOLDER` gives its features{faces}."
        )

    @property
    def streams(self) -> Mapping[str, StreamInfo]:
        """See `DataSource`; sorted, as caches are in the cached mode."""
        learning = StreamInfo(
            fingerprint=self.fingerprint,
            row_seconds=self.modality.row_seconds(),
            dim=self.identity.dim + len(self.identity.vad_names),
            note=self.note,
            licence=self.identity.licence,
        )
        return dict(sorted({**self.cached.streams, self.stream: learning}.items()))

    def tables(self) -> dict[str, dict[str, Any]]:
        """See `DataSource`."""
        made = dict(self.fingerprint)
        backbone = {"source": self.identity.source, "name": made.pop("backbone"), "fingerprint": made}
        if self.identity.revision is not None:
            backbone["revision"] = self.identity.revision
        if self.init_head is not None:
            backbone["head_sha256"] = file_sha256(self.init_head.folder / BEST)
        data = {"media": str(Path(self.root).absolute()), self.modality.hash_name: self.clips_sha256}
        cached = self.cached.tables() if self.cached.streams else {"data": {}}
        return {
            **cached,
            "data": data | cached["data"],
            TABLE: self.tuning.to_toml(self.identity.modality),
            "backbone": backbone,
            LICENCE: all_of([info.licence for info in self.streams.values()]).to_dict(),
        }

    def prepare(self, folder: Path) -> None:
        """See `DataSource`: what the cached features were derived with, where they are derived."""
        self.cached.prepare(folder)

    def make_loop(self, settings: TrainSettings, train: Split, valid: Split | None, folder: Path) -> FinetuneTrainer:
        """See `DataSource`.

        Raises:
            TrainSettingsError: the backbone has no such layers.
            BackboneError: it cannot be trained, or its files do not fit.
        """
        tuning, dims = self.tuning, {name: info.dim for name, info in self.streams.items()}

        def build() -> BackboneWithHead:
            torch.manual_seed(settings.seed)  # the first draws are the head's, as in the cached mode
            predictor = Predictor(settings, dims, len(train.labels.names), by_frame=train.labels.by_frame)
            if self.init_head is not None:
                predictor.load_state_dict(self.init_head.head.state_dict())
            backbone = load_trainable(self.identity, self.processes.device, self.precision, regularisation(tuning))
            dtype, hop = DTYPES[self.precision], self.identity.hop_seconds
            return BackboneWithHead(backbone, predictor, settings, dtype, self.stream, hop)

        assert self.clips is not None
        return FinetuneTrainer(
            settings,
            tuning,
            build,
            (self.modality, self.clips),
            train,
            valid,
            self.processes,
            folder,
            standardise=self.init_head is None and any(settings.stream(name).standardise for name in dims),
        )


def regularisation(tuning: FinetuneSettings) -> Regularisation:
    """Return the settings with which a backbone is loaded."""
    return Regularisation(
        dropout=None if tuning.backbone_dropout < 0 else tuning.backbone_dropout,
        layerdrop=tuning.layerdrop,
        spec_augment=tuning.spec_augment,
        checkpointing=tuning.checkpointing,
    )


def gather_media(
    source: DecodedMedia,
    label_files: LabelFiles,
    folder: StrPath,
    *,
    media_root: StrPath | None = None,
    reporter: Reporter = SILENT,
) -> Inputs:
    """Read the labels, find the media, decode what is not decoded yet, load the cached streams.

    Args:
        source: the backbone and the place of the media.
        label_files: which clips, and their labels.
        folder: of the decoded clips; the first process writes it, and all read it. Machines that do not see that
            folder decode for themselves.
        media_root: see `extract.sources.find_media`.
        reporter: hears of decoded clips, and of what the user should know about the media.

    Raises:
        LabelError: a label file is wrong, or clips are missing or unreadable; says how many and names the first five.
        MediaListError: there are no media.
    """
    skip_missing, modality = label_files.skip_missing, source.modality
    places = {one.id: one for one in _find(source, media_root)}
    labels = {name: resolve(part, places) for name, part in label_files.read().items()}
    if labels["train"].by_frame and not modality.takes_frame_labels:
        raise LabelError(
            f"{labels['train'].path} has labels per frame, and fine-tuning on {modality.medium} takes one value per "
            "clip; extract features and train a head on them with `emi train-head`"
        )
    _refuse_missing(labels, places, source.root, skip_missing)
    check_known("stream to require", label_files.require, source.streams)
    require = [name for name in label_files.require if name != source.stream]
    stores = source.cached.stores
    used = {name: held_clips(stores, part, skip_missing, require, in_some=False) for name, part in labels.items()}
    for part in used.values():
        refuse_foreign(stores, part)
    wanted = list(dict.fromkeys(clip for part in used.values() for clip in part.ids))
    sources = [places[clip] for clip in wanted if clip in places]
    found = _decoded(source, sources, folder, reporter)
    _refuse_unreadable(found, sources, folder, skip_missing)
    if found.notes:
        reporter.media_notes(found.notes)
    used = {name: _readable(part, found, skip_missing) for name, part in used.items()}
    ids = {name: part.ids for name, part in used.items()}
    streams = load_cached(ids, source.cached, source.processes, Path(folder))
    for name, clips in ids.items():
        streams[name] = dict(sorted({**streams[name], source.stream: found.stream(source.stream, clips)}.items()))
    _refuse_nothing(source, streams["train"][source.stream])
    splits = {
        name: with_required(make_split(part, streams[name], label_files.format.fps), skip_missing, require)
        for name, part in used.items()
    }
    trained = {clip for split in splits.values() for clip in split.labels.ids}
    source = replace(source, clips=found, clips_sha256=found.sha256(sorted(trained)))
    return Inputs(source=source, label_files=label_files, labels=labels, splits=splits)


def _find(source: DecodedMedia, media_root: StrPath | None) -> list[Source]:
    """Find the media; folders of images are clips of faces."""
    faces = source.identity.modality == "face"
    found = find_media(source.root, media_root, images=faces)
    return with_videos(found, source.tuning.videos) if source.tuning.videos else found


def _decoded(source: DecodedMedia, sources: Sequence[Source], folder: StrPath, reporter: Reporter) -> Clips:
    """Return the decoded clips of some media; the first process of each machine that lacks them decodes."""
    processes, modality = source.processes, source.modality
    if processes.first:
        there = modality.open(folder, sources)
        if there is None or modality.mended(sources, there.failures):
            modality.decode(folder, sources, reporter.clip_decoded)
    processes.wait()
    found = modality.open(folder, sources)
    if found is None and processes.first_here and not processes.first:  # a machine without the first one's disk
        modality.decode(folder, sources)
    processes.wait()
    found = found or modality.open(folder, sources)
    if found is None:
        raise LabelError(
            f"the decoded {modality.medium} in {folder} is not of these media; name another folder with "
            f"{modality.option}"
        )
    return found


def _refuse_unreadable(found: Clips, sources: Sequence[Source], folder: StrPath, skip_missing: bool) -> None:
    """Refuse clips that cannot be read, where they are not skipped or are all."""
    if found.failures and not (skip_missing and any(one.id in found for one in sources)):
        first = found.failures[0]
        raise LabelError(
            f"{len(found.failures)} of {len(sources)} clips cannot be read; the first, "
            f"{first.path}, {first.reason}. {Path(folder) / 'failures.csv'} lists them: mend or remove them, or give "
            "--skip-missing (or --allow-truncated, where they are only cut off)"
        )


def _readable(labels: Labels, clips: Clips, skip_missing: bool) -> Labels:
    """Return the labels of the clips that could be read, where others are skipped."""
    if not skip_missing:
        return labels
    labels = labels.take([i for i, clip in enumerate(labels.ids) if clip in clips])
    if not len(labels):
        raise LabelError(f"none of the clips of {labels.path} can be read")
    return labels


def _refuse_nothing(source: DecodedMedia, stream: Stream) -> None:
    """Refuse media in which nothing was found."""
    if stream.valid is not None and not stream.only_valid().lengths.any():
        raise LabelError(
            f"no face was found in any training clip of {source.root}; look at what `emi faces` cuts out of them, or "
            "give a smaller --min-face"
        )


def _refuse_missing(
    labels: Mapping[str, Labels], places: Mapping[str, Source], root: StrPath, skip_missing: bool
) -> None:
    for part in labels.values():
        missing = [part.filenames[i] for i, clip in enumerate(part.ids) if clip not in places]
        if not missing or (skip_missing and len(missing) < len(part)):
            continue
        hint = f"; the media are called like {next(iter(places))!r}" if len(missing) == len(part) else ""
        raise LabelError(
            f"{len(missing)} of the {len(part)} clips of {part.path} are not in {root} (first: "
            f"{', '.join(missing[:5])}){hint or '; give their folder with --media, or --skip-missing'}"
        )
