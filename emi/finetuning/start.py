"""From media and label files to a finished fine-tuning: what the command line and `emi.finetuning` call."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from cache.paths import StrPath
from cache.system.memory import give_freed_memory_back, keep_freed_memory
from emi.finetuning.depth import Depth
from emi.finetuning.helpers import helpers
from emi.finetuning.media import DecodedMedia, OnDecode, OnNotes, gather_media, regularisation
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.sharding import check_sharding
from extract.backbones import Identity, identify, load_trainable
from train_head.data.label_format import LabelColumns, LabelFormat
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols import Outcome, check_protocol, run_on
from train_head.protocols.members import OnRun
from train_head.runs.load import TrainedHead, load_head
from train_head.runs.run_folder import CONFIG
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings, resolve_settings
from train_head.training.trainer import OnEpoch

AUDIO = "audio"
"""Folder of the decoded audio within the run folder's parent, where none is named."""


def finetune(
    media: StrPath,
    train: StrPath,
    valid: StrPath | None,
    out: StrPath,
    settings: TrainSettings | None = None,
    own: FinetuneSettings | None = None,
    *,
    backbone: str,
    revision: str | None = None,
    test: StrPath | None = None,
    init_head: StrPath | None = None,
    audio: StrPath | None = None,
    media_root: StrPath | None = None,
    skip_missing: bool = False,
    columns: LabelColumns | None = None,
    seeds: int | None = None,
    folds: int | None = None,
    only_fold: int | None = None,
    train_on_all: bool = False,
    on_decode: OnDecode | None = None,
    on_notes: OnNotes | None = None,
    on_run: OnRun | None = None,
    on_epoch: OnEpoch | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Outcome:
    """Train backbone and head together, one run or several by a protocol; called again it goes on.

    Where `own.processes`, torchrun or `accelerate launch` start several, they share every step; the first one writes.

    Args:
        media: a folder, a CSV or a list, as for extraction.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen; with folds, more clips to cut, or None.
        out: run folder, or the folder of the runs; a finished run is a backbone for extraction as well.
        settings: of the head and the optimizer.
        own: of the backbone.
        backbone: name, Hugging Face id or folder.
        revision: branch, tag or commit of an id; the main branch by default.
        test: CSV of a third split to predict; its targets may be missing.
        init_head: run folder of a head that was trained on this backbone's cached features, to start from.
        audio: folder of the decoded audio, which runs may share; OUT-audio beside the run folder by default.
        media_root: where the paths of a CSV or list start.
        skip_missing: leave out labelled clips whose media are missing or unreadable instead of refusing.
        columns: as for `train_head.protocols.run_protocol`.
        seeds: likewise.
        folds: likewise.
        only_fold: likewise.
        train_on_all: likewise.
        on_decode: called after each decoded clip with clips done, of how many, and its seconds.
        on_notes: called with what should be known of the media, if there is something.
        on_run: called before each of several runs.
        on_epoch: called with each epoch's record.
        on_note: called with a sentence on the checkpoint, where there is something to say.

    Raises:
        TrainSettingsError, LabelError, BackboneError, RunFolderError, MediaListError: before the first step.
        DivergedError: the loss is not finite.
        FinetuneMemoryError: the memory does not suffice; says what to change.
        HelperError: one of `own.processes` ended early.
    """
    check_protocol(valid is not None, seeds, folds, train_on_all, only_fold)
    out = Path(out).absolute()
    settings, own = settings or TrainSettings(), own or FinetuneSettings()
    identity = identify(backbone, revision)
    if on_note and identity.note:
        on_note(identity.note)
    settings = on_this_machine(settings, identity)
    files = {name: path for name, path in (("train", train), ("valid", valid), ("test", test)) if path is not None}
    work = partial(
        _work,
        media,
        files,
        out,
        settings,
        own,
        identity,
        init_head,
        audio or default_audio(out),
        form=settings.label_format(columns),
        gathering={"media_root": media_root, "skip_missing": skip_missing},
        protocol={"seeds": seeds, "folds": folds, "only_fold": only_fold, "train_on_all": train_on_all},
    )
    with helpers(own.processes, settings.device, work):
        return work(on_decode=on_decode, on_notes=on_notes, on_run=on_run, on_epoch=on_epoch)


def _work(
    media: StrPath,
    files: Mapping[str, StrPath],
    out: Path,
    settings: TrainSettings,
    own: FinetuneSettings,
    identity: Identity,
    init_head: StrPath | None,
    audio: StrPath,
    *,
    form: LabelFormat,
    gathering: Mapping[str, Any],
    protocol: Mapping[str, Any],
    on_decode: OnDecode | None = None,
    on_notes: OnNotes | None = None,
    on_run: OnRun | None = None,
    on_epoch: OnEpoch | None = None,
) -> Outcome:
    """What each process does; `finetune` says of what."""
    if settings.device == "cpu":
        spare_time_or_memory(own)
    processes = Processes(settings.device)
    check_sharding(own, processes.count)
    if not (out / CONFIG).is_file():
        check_backbone(identity, settings, own)
    head = load_init_head(init_head, identity, settings) if init_head is not None else None
    material = DecodedMedia(
        root=media,
        identity=identity,
        own=own,
        precision=settings.precision,
        processes=processes,
        targets=read_labels(files["train"], form).names,
        init_head=head,
    )
    if head is not None and head.names != material.targets:
        raise TrainSettingsError(
            f"{init_head} predicts {', '.join(head.names)}, and {files['train']} has {', '.join(material.targets)}; "
            "start from a head of the same targets, or leave out --init-head"
        )
    if head is not None and head.label_range != settings.label_range:
        low, high = head.label_range
        raise TrainSettingsError(
            f"{init_head} was trained on labels from {low:g} to {high:g}; give --label-range {low:g},{high:g} here "
            "too, or leave out --init-head"
        )
    inputs = gather_media(
        material,
        files,
        audio,
        form,
        on_decode=on_decode,
        on_notes=on_notes if processes.first else None,
        **gathering,
    )
    with _own_folder(processes, out) as place:
        return run_on(
            replace(inputs, material=replace(cast(DecodedMedia, inputs.material), place=place, home=out)),
            place,
            settings,
            **protocol,
            on_run=on_run if processes.first else None,
            on_epoch=on_epoch,
        )


def spare_time_or_memory(own: FinetuneSettings) -> None:
    """What a CPU does with memory that is freed: who asks for checkpointing or FSDP has too little, and else time."""
    give_freed_memory_back() if own.checkpointing or own.fsdp else keep_freed_memory()


def check_backbone(identity: Identity, settings: TrainSettings, own: FinetuneSettings) -> None:
    """Refuse what the backbone cannot do, before media are decoded and a run folder is made.

    Raises:
        TrainSettingsError: it has no such layers, or does not compute so.
        BackboneError: it cannot be trained, or has no place for adapters, or its files do not fit.
    """
    settings = on_this_machine(settings, identity)
    Depth(load_trainable(identity, torch.device("cpu"), settings.precision, regularisation(own)), own)


def default_audio(out: StrPath) -> Path:
    """Beside the run folder, which must be empty where a run begins."""
    place = Path(out)
    return place.with_name(f"{place.name}-{AUDIO}")


def on_this_machine(settings: TrainSettings, identity: Identity) -> TrainSettings:
    """Settle device and precision.

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
    if settings.precision not in identity.precisions:
        raise TrainSettingsError(
            f"--precision {asked}: backbone {identity.source} computes in {', '.join(identity.precisions)} only"
        )
    if settings.precision == "fp16" and settings.device != "cuda":
        raise TrainSettingsError("--precision fp16 trains on a GPU only; use fp32 or bf16 here")
    return settings


def resolve_with_head(
    config: StrPath | None, init_head: StrPath | None, **overrides: Any
) -> tuple[TrainSettings, FinetuneSettings]:
    """Settings from a file and keywords, the head's kind and options being those of the head to start from.

    Raises:
        TrainSettingsError: see `emi.finetuning.settings.resolve`.
        RunFolderError: the head's folder is no run.
    """
    if init_head is not None and (Path(init_head) / CONFIG).is_file():
        known = resolve_settings(Path(init_head) / CONFIG)
        taken = {"head": known.head, "standardise": known.standardise, **known.head_options}
        overrides = taken | {key: value for key, value in overrides.items() if value is not None}
    return resolve(config, **overrides)


def load_init_head(run: StrPath, identity: Identity, settings: TrainSettings) -> TrainedHead:
    """A trained head that fits the backbone.

    Raises:
        TrainSettingsError: it was trained on other features, or is another head than the settings say.
        RunFolderError: it is no finished run.
    """
    trained = load_head(run)
    dim = trained.features["dim"]
    if trained.transform is not None:
        raise TrainSettingsError(
            f"{run} was trained on derived features, which a backbone does not give; train a head on the extracted ones"
        )
    if (dim, tuple(trained.features["vad_names"])) != (identity.dim, identity.vad_names):
        raise TrainSettingsError(
            f"{run} was trained on {dim} features per frame and {len(trained.features['vad_names'])} of VAD, and "
            f"{identity.source} gives {identity.dim} and {len(identity.vad_names)}; start from a head that was trained "
            "on this backbone's features"
        )
    theirs, ours = (f.get("weights_sha256") for f in (trained.features["fingerprint"], identity.fingerprint))
    if theirs != ours:
        raise TrainSettingsError(
            f"{run} was trained on features of {trained.features['fingerprint'].get('backbone')} with other weights "
            f"than {identity.source} has; start from a head that was trained on this backbone's features"
        )
    if not isinstance(trained.head, Predictor):
        raise RunFolderError(f"{run} holds several runs; name one of them, such as {Path(run) / 'seed-0'}")
    wanted = Predictor(settings, identity.dim + len(identity.vad_names), len(trained.names))
    if _shapes(trained.head) != _shapes(wanted):
        raise TrainSettingsError(
            f"{run} is another head than the settings ask for; leave out head options beside --init-head, and give a "
            "loss with as many outputs per target"
        )
    return trained


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@contextlib.contextmanager
def _own_folder(processes: Processes, out: Path) -> Iterator[Path]:
    """The run folder for the first process, and a passing one for the others, which write what nobody reads."""
    if processes.first:
        yield out
        return
    with tempfile.TemporaryDirectory(prefix="emi-finetune-") as name:
        yield Path(name) / out.name
