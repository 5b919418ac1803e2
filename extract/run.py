"""Fill a feature cache from media: plan, skip what is there, extract the rest."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cache.container import open_container
from cache.errors import CacheFormatError
from cache.format import Clip, Header
from cache.reader import open_cache
from cache.writer import CacheWriter
from extract.backbones import Identity, family_of, identify
from extract.failures import Failure, write_failures
from extract.plan import windows
from extract.settings import RESAMPLER, SAMPLE_RATE, ExtractSettings
from extract.sources import Source, find_media

Progress = Callable[[int, int, float], None]
"""Called with clips handled so far, clips to handle, and seconds of audio of the clip just finished."""


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What a run would do.

    Attributes:
        windows: this job's share of the clips, sorted by id, in the windows in which batches are planned.
        todo: how many clips the cache lacks.
        header: fingerprint and layout of the cache.
        identity: the backbone.
        precision_reason: why this precision was chosen.
    """

    windows: Sequence[Sequence[Source]]
    todo: int
    header: Header
    identity: Identity
    precision_reason: str

    @property
    def sources(self) -> list[Source]:
        """The clips of all windows."""
        return [source for window in self.windows for source in window]


@dataclass(kw_only=True)
class ExtractSummary:
    """What a run did: clips written, clips that the cache had before, audio seconds used, and the failures."""

    cache: str
    written: int = 0
    present: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None


def plan(media: str | os.PathLike[str], cache: str | os.PathLike[str], settings: ExtractSettings) -> ExtractPlan:
    """Find the media, describe the backbone and look what the cache already holds. Writes nothing.

    Raises:
        MediaListError, BackboneError, ExtractSettingsError: the input cannot be used.
        StaleCacheError: the cache holds features made otherwise.
    """
    container = open_container(cache)
    sources = find_media(media, settings.media_root)
    identity = identify(settings.backbone)
    precision, reason = settings.resolved_precision(identity.precisions)
    header = make_header(identity, settings, precision)
    done: set[str] = set()
    if container.read_attributes() is not None:
        with open_cache(cache) as store:
            header.must_match(store.header, store.path)
            done = set(store.ids)
    container.close()
    index, count = settings.shard_numbers()
    share = windows(sources, settings.max_seconds)[index::count]
    todo = sum(source.id not in done for window in share for source in window)
    return ExtractPlan(windows=share, todo=todo, header=header, identity=identity, precision_reason=reason)


def extract(
    media: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    settings: ExtractSettings | None = None,
    *,
    on_plan: Callable[[ExtractPlan], None] | None = None,
    on_progress: Progress | None = None,
) -> ExtractSummary:
    """Extract the features of all media that the cache lacks; unreadable files are collected, not raised.

    Interrupted at any moment, the cache keeps what was committed, and the same call goes on from there.

    Args:
        media: folder, CSV or list; see `extract.sources.find_media`.
        cache: `NAME.zarr` or `NAME.h5`, created where missing.
        settings: how to extract.
        on_plan: called once before work starts.
        on_progress: called after each clip.

    Raises:
        EmiError: see `plan`; nothing was written then.
    """
    settings = settings or ExtractSettings()
    planned = plan(media, cache, settings)
    if on_plan:
        on_plan(planned)
    summary = ExtractSummary(cache=os.fspath(cache), present=len(planned.sources) - planned.todo)
    if planned.todo:
        _fill(planned, settings, summary, on_progress or (lambda *_: None))
    return summary


def _fill(plan: ExtractPlan, settings: ExtractSettings, summary: ExtractSummary, on_progress: Progress) -> None:
    from extract.clips import extract_clips  # imports torch, which a run with nothing to do never needs

    device = settings.resolved_device()
    backbone = family_of(settings.backbone).load(plan.identity, device, plan.header.fingerprint["precision"])
    batch_seconds, parallel_batches = settings.batching(plan.identity.small)
    with CacheWriter(summary.cache, plan.header) as writer:
        results = extract_clips(
            plan.windows,
            backbone,
            device=device,
            max_seconds=settings.max_seconds,
            batch_seconds=batch_seconds,
            parallel_batches=parallel_batches,
            done=writer.done,
            workers=settings.workers,
        )
        try:
            for result in results:
                seconds = _take(result, writer, summary)
                on_progress(summary.written + len(summary.failures), plan.todo, min(seconds, settings.max_seconds))
        finally:
            results.close()
            tried = [*writer.done, *(failure.id for failure in summary.failures)]
            summary.failures_file = write_failures(summary.cache, summary.failures, tried)


def _take(result: Clip | Failure, writer: CacheWriter, summary: ExtractSummary) -> float:
    """Write a clip or note a failure; returns the clip's seconds."""
    if isinstance(result, Failure):
        summary.failures.append(result)
        return 0.0
    try:
        writer.add(result)
    except CacheFormatError as error:  # the features of this clip cannot be stored; those of the others can
        summary.failures.append(Failure(result.id, "", str(error)))
        return 0.0
    summary.written += 1
    summary.seconds += result.seconds
    return result.seconds


def make_header(identity: Identity, settings: ExtractSettings, precision: str) -> Header:
    """The cache header for a backbone and settings: the fingerprint names everything that changes a number."""
    fingerprint: dict[str, Any] = {
        **identity.fingerprint,
        "sample_rate": SAMPLE_RATE,
        "max_seconds": float(settings.max_seconds),
        "resampler": RESAMPLER,
        "precision": precision,
        "dtype": settings.dtype,
    }
    return Header(
        fingerprint=fingerprint,
        dim=identity.dim,
        vad_names=identity.vad_names,
        hop_seconds=identity.hop_seconds,
        provenance={
            "source": identity.source,
            "python": platform.python_version(),
            **{name: version(name) for name in ("emi", "torch", "torchaudio", "transformers", "av", "silero-vad")},
        },
    )
