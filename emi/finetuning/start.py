"""From media and label files to a fine-tuned backbone and head: what the command line and `emi.finetune` call."""

import contextlib
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cache.fingerprint import differences
from cache.paths import StrPath
from cache.system.memory import give_freed_memory_back, keep_freed_memory
from emi.finetuning.cached import open_cached
from emi.finetuning.depth import Depth
from emi.finetuning.local_processes import local_processes
from emi.finetuning.media import DecodedMedia, gather_media, regularisation
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.sharding import check_sharding
from extract.backbones import Identity, identify, load_trainable
from train_head.data.names import Caches
from train_head.data.reading import read_any_labels
from train_head.errors import RunFolderError, TrainSettingsError, refuse
from train_head.protocols import Outcome, train
from train_head.runs.inputs import LabelFiles
from train_head.runs.load import TrainedHead, TrainedStream, load_head
from train_head.runs.run_folder import CONFIG
from train_head.training.loop import SILENT, Reporter
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings, resolve_settings
from train_head.validation import Validation

FACE_ROWS = ("fps", "crop", "missing_faces")
"""Of a fingerprint: what the rows of faces are that a head was trained on."""


@dataclass(frozen=True, kw_only=True)
class FinetuneData:
    """What is fine-tuned, and on what.

    Attributes:
        media: a folder, a CSV or a list, as for extraction.
        label_files: label CSVs of "train", perhaps "valid" (by which the best epoch is chosen) and "test".
        backbone: name, Hugging Face id or folder.
        revision: branch, tag or commit of an id; the main branch by default.
        init_head: run folder of a head that was trained on this backbone's cached features, to start from.
        audio: folder of the decoded audio, which runs may share; OUT-audio beside the run folder by default.
        crops: the same of crops of faces; OUT-crops by default.
        media_root: where the paths of a CSV or list start.
        cache: features of other streams, by name, which the head reads beside those of the backbone.
    """

    media: StrPath
    label_files: LabelFiles
    backbone: str
    revision: str | None = None
    init_head: StrPath | None = None
    audio: StrPath | None = None
    crops: StrPath | None = None
    media_root: StrPath | None = None
    cache: Caches | None = None


def finetune(
    data: FinetuneData,
    out: StrPath,
    settings: TrainSettings | None = None,
    tuning: FinetuneSettings | None = None,
    validation: Validation | None = None,
    reporter: Reporter = SILENT,
) -> Outcome:
    """Train backbone and head together, one run or several by a protocol; called again it resumes.

    Where `tuning.processes`, torchrun or `accelerate launch` start several processes, they share every step; the first
    one writes.

    Args:
        data: media, labels and backbone.
        out: run folder, or the folder of the runs; a finished run is a backbone for extraction as well.
        settings: of the head and the optimizer.
        tuning: of the backbone.
        validation: how many runs, and on which clips each is validated.
        reporter: hears of media, runs, epochs and steps.

    Raises:
        TrainSettingsError, LabelError, BackboneError, CacheError, RunFolderError, MediaListError: before the first
            step.
        DivergedError: the loss is not finite.
        FinetuneMemoryError: the memory does not suffice; says what to change.
        LocalProcessError: one of `tuning.processes` ended early.
    """
    validation = validation or Validation()
    validation.check_split(data.label_files.files.get("valid"))
    identity, tuning = identify(data.backbone, data.revision), tuning or FinetuneSettings()
    tuning.check_modality(identity.modality)
    if identity.note:
        reporter.note(identity.note)
    settings = on_this_machine(settings or TrainSettings(), identity)
    work = functools.partial(_share_training, data, Path(out).absolute(), settings, tuning, validation, identity)
    with local_processes(tuning.processes, settings.device, work):
        return work(reporter)


def _share_training(
    data: FinetuneData,
    out: Path,
    settings: TrainSettings,
    tuning: FinetuneSettings,
    validation: Validation,
    identity: Identity,
    reporter: Reporter = SILENT,
) -> Outcome:
    """Do one process's part of a training."""
    if settings.device == "cpu":
        spare_time_or_memory(tuning)
    processes = Processes(settings.device)
    check_sharding(tuning, processes.count)
    folder = decoded_folder(data, identity, out)
    source = DecodedMedia(
        root=data.media,
        identity=identity,
        tuning=tuning,
        precision=settings.precision,
        processes=processes,
        cached=open_cached(data.cache, identity.modality, data.label_files.ids),
    )
    if data.init_head:
        source = replace(source, init_head=load_init_head(data.init_head, data.label_files, source, settings))
    settings.for_streams(source.streams)  # refuses names and settings of streams before anything is decoded
    if not (out / CONFIG).is_file():
        check_backbone(identity, settings, tuning)
    reporter = reporter if processes.first else SILENT
    inputs = gather_media(source, data.label_files, folder, media_root=data.media_root, reporter=reporter)
    # only the first process writes into the run folder; nobody reads what the others write
    own = contextlib.nullcontext(out.parent) if processes.first else tempfile.TemporaryDirectory(prefix="emi-finetune-")
    with own as parent:
        return train(inputs, Path(parent) / out.name, settings, validation, reporter)


def decoded_folder(data: FinetuneData, identity: Identity, out: Path) -> Path:
    """Return the folder of the decoded clips; not within the run's, which begins empty.

    Raises:
        TrainSettingsError: one for clips of another modality is given.
    """
    given = {"audio": data.audio, "face": data.crops}
    name = {"audio": "audio", "face": "crops"}[identity.modality]
    foreign = next((f"--{other}" for other in ("audio", "crops") if other != name and getattr(data, other)), "")
    refuse(
        (
            bool(foreign),
            f"{foreign} names the folder of other media than {identity.source} takes; give --{name}, or leave it out",
        )
    )
    folder = given[identity.modality]
    return out.with_name(f"{out.name}-{name}") if folder is None else Path(folder)


def spare_time_or_memory(tuning: FinetuneSettings) -> None:
    """Set what a CPU does with freed memory: checkpointing and FSDP are for those who have too little of it."""
    give_freed_memory_back() if tuning.checkpointing or tuning.fsdp else keep_freed_memory()


def check_backbone(identity: Identity, settings: TrainSettings, tuning: FinetuneSettings) -> None:
    """Refuse what the backbone cannot do, before media are decoded and a run folder is made.

    Raises:
        TrainSettingsError: it has no such layers, or does not compute so.
        BackboneError: it cannot be trained, or has no place for adapters, or its files do not fit.
    """
    settings = on_this_machine(settings, identity)
    Depth(load_trainable(identity, torch.device("cpu"), settings.precision, regularisation(tuning)), tuning)


def on_this_machine(settings: TrainSettings, identity: Identity) -> TrainSettings:
    """Resolve device and precision.

    Raises:
        TrainSettingsError: no such device, or the backbone does not compute in the precision asked for.
    """
    asked = settings.precision
    settings = settings.on_this_machine()
    if asked == "auto":
        if settings.device == "cuda" and settings.precision == "fp32":  # a GPU that does not multiply bfloat16
            settings = replace(settings, precision="fp16")
        if settings.precision not in identity.precisions:
            settings = replace(settings, precision="fp32")
    refuse(
        (
            settings.precision not in identity.precisions,
            f"--precision {asked}: backbone {identity.source} computes in {', '.join(identity.precisions)} only",
        ),
        (
            settings.precision == "fp16" and settings.device != "cuda",
            "--precision fp16 trains on a GPU only; use fp32 or bf16 here",
        ),
    )
    return settings


def resolve_with_head(
    config: StrPath | None, init_head: StrPath | None, **overrides: Any
) -> tuple[TrainSettings, FinetuneSettings]:
    """Resolve settings from a file and keywords; kind and options of the head are those of the head to start from.

    Raises:
        TrainSettingsError: see `emi.finetuning.settings.resolve`.
        RunFolderError: the head's folder is no run.
    """
    if init_head is not None and (Path(init_head) / CONFIG).is_file():
        known = resolve_settings(Path(init_head) / CONFIG)
        given = {key: value for key, value in overrides.items() if value is not None}
        several = {"streams": known.streams, "fusion": {"name": known.fusion, **known.fusion_options}}
        overrides = {
            "head": known.head,
            "standardise": known.standardise,
            "auxiliary": known.auxiliary,
            **known.head_options,
            **(several if len(known.streams) > 1 else {}),
            **given,
        }
    return resolve(config, **overrides)


def load_init_head(run: StrPath, label_files: LabelFiles, source: DecodedMedia, settings: TrainSettings) -> TrainedHead:
    """Load the trained head to start from.

    Raises:
        TrainSettingsError: it was trained on other features, targets or scales, or is another head than the settings
            say.
        RunFolderError: it is no finished run.
    """
    trained = load_head(run)
    if not isinstance(trained.head, Predictor):
        raise RunFolderError(f"{run} holds several runs; name one of them, such as {Path(run) / 'seed-0'}")
    labels = read_any_labels(label_files.files["train"], label_files.format)
    learned = _learned_stream(trained, source, by_frame=labels.by_frame)
    identity, features = source.identity, learned.features
    dim, vad_names = features["dim"], tuple(features["vad_names"])
    theirs, ours = (f.get("weights_sha256") for f in (features["fingerprint"], identity.fingerprint))
    dims = {name: info.dim for name, info in source.streams.items()}
    wanted = Predictor(settings, dims, len(trained.names), by_frame=labels.by_frame)
    shapes, wanted_shapes = ({n: t.shape for n, t in m.state_dict().items()} for m in (trained.head, wanted))
    targets = labels.names
    low, high = trained.label_range
    refuse(
        (
            learned.transform is not None,
            f"{run} was trained on derived features, which a backbone does not give; train a head on the extracted "
            "ones",
        ),
        (
            (dim, vad_names) != (identity.dim, identity.vad_names),
            f"{run} was trained on {dim} features per frame and {len(vad_names)} of VAD, and {identity.source} gives "
            f"{identity.dim} and {len(identity.vad_names)}; start from a head that was trained on this backbone's "
            "features",
        ),
        (
            theirs != ours,
            f"{run} was trained on features of {features['fingerprint'].get('backbone')} with other weights "
            f"than {identity.source} has; start from a head that was trained on this backbone's features",
        ),
        (
            shapes != wanted_shapes,
            f"{run} is another head than the settings ask for; leave out head options beside --init-head, and give a "
            "loss with as many outputs per target",
        ),
        (
            trained.names != targets,
            f"{run} predicts {', '.join(trained.names)}, and {label_files.files['train']} has "
            f"{', '.join(targets)}; start from a head of the same targets, or leave out --init-head",
        ),
        (
            trained.label_range != settings.label_range,
            f"{run} was trained on labels from {low:g} to {high:g}; give --label-range {low:g},{high:g} "
            "here too, or leave out --init-head",
        ),
    )
    _refuse_other_rows(run, features["fingerprint"], source.fingerprint)
    return trained


def _refuse_other_rows(run: StrPath, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a head that was trained on rows of faces that are other than the run will have, by two fingerprints."""
    rows = [{key: made[key] for key in FACE_ROWS if key in made} for made in (theirs, ours)]
    differing = "; ".join(differences(*rows))
    refuse(
        (
            bool(differing),
            f"{run} was trained on other rows of faces: {differing}; give the --fps and --crop of its features here, "
            "which must be extracted without --missing-faces black",
        )
    )


def _learned_stream(trained: TrainedHead, source: DecodedMedia, *, by_frame: bool) -> TrainedStream:
    """Return what a head read of the stream whose backbone learns.

    Raises:
        TrainSettingsError: it reads other streams than the run will, or other features of them, or predicts clips where
            labels are per frame, or frames where they are not.
    """
    streams, cached = trained.streams, source.cached.streams
    if trained.by_frame != by_frame:
        predicts, given = ("frames", "clip") if trained.by_frame else ("clips", "frame")
        raise TrainSettingsError(
            f"{trained.folder} predicts {predicts}, and the labels are per {given}; start from a head that was trained "
            "on such labels, or leave out --init-head"
        )
    if not cached and len(streams) == 1:
        return trained.only
    if list(streams) != list(source.streams):
        wanted = ", ".join(source.streams) if cached else "one stream"
        raise TrainSettingsError(
            f"{trained.folder} reads {', '.join(streams)}; start from a head on {wanted}, or give the caches of its "
            "other streams with --cache NAME=PATH"
        )
    for name, info in cached.items():
        if differing := differences(streams[name].features["fingerprint"], info.fingerprint):
            raise TrainSettingsError(
                f"{trained.folder} was trained on other features of the stream {name!r} than --cache {name}=… holds: "
                f"{'; '.join(differing)}; give the cache that it was trained on"
            )
    return streams[source.stream]
