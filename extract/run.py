"""Fill a feature cache from media: plan, skip what is there, extract the rest."""

import importlib.util
import math
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from cache.containers.container import open_container
from cache.format import Header
from cache.ids import stored_form
from cache.licences import LICENCE
from cache.reader import FeatureCache, open_cache
from cache.version import version
from cache.writer import CacheWriter, seal
from extract.backbones import Identity, identify
from extract.errors import ExtractSettingsError
from extract.failures import Failure, Note, write_failures, write_truncated
from extract.fill import fill
from extract.plan import windows
from extract.settings import DECODER, RESAMPLER, SAMPLE_RATE, ExtractSettings
from extract.sources import Source, find_media
from extract.stats import PipelineStats
from extract.suffixes import left_out
from extract.workers.processes import run_processes

Progress = Callable[[int, int, float], None]
"""Called with clips handled so far, clips to handle, and seconds of audio of the clip just finished."""


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What a run would do.

    Attributes:
        windows: this job's share of the clips, sorted by id, in the windows in which batches are planned.
        present: ids of this job's share that the cache holds, but of those to be extracted again.
        changed: ids of this job's share that the cache holds, and whose media are others now.
        refresh: those of them that are to be extracted again.
        left_out: files of a folder that are not taken, because their suffixes are no media's, by suffix.
        header: fingerprint and layout of the cache.
        identity: the backbone.
        precision_reason: why this precision was chosen.
    """

    windows: Sequence[Sequence[Source]]
    present: Collection[str]
    changed: Sequence[str] = ()
    refresh: frozenset[str] = frozenset()
    left_out: Mapping[str, int] = field(default_factory=dict)
    header: Header
    identity: Identity
    precision_reason: str

    @property
    def sources(self) -> list[Source]:
        """The clips of all windows."""
        return [source for window in self.windows for source in window]

    @property
    def todo(self) -> int:
        """How many clips the cache lacks."""
        return sum(map(len, self.windows)) - len(self.present)

    def share(self, number: int, count: int) -> "ExtractPlan":
        """Every `count`-th window, from the given one on."""
        windows = self.windows[number::count]
        present = frozenset(source.id for window in windows for source in window if source.id in self.present)
        return replace(self, windows=windows, present=present)


@dataclass(kw_only=True)
class ExtractSummary:
    """What a run did.

    Attributes:
        cache: where.
        written: clips.
        present: clips that the cache had before, or that another process wrote meanwhile.
        seconds: of audio that was written, before the cut.
        failures: the clips that could not be.
        failures_file: where these are listed.
        tracks: clips of files with several audio tracks, and which was used.
        truncated: clips that were used although their files are cut off.
        truncated_file: where these are listed.
        changed: ids of clips whose media changed since they were extracted, and that were left as they are.
        stats: what the run waited for.
        notes: sentences that a user should read.
    """

    cache: str
    written: int = 0
    present: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None
    tracks: list[Note] = field(default_factory=list)
    truncated: list[Note] = field(default_factory=list)
    truncated_file: Path | None = None
    changed: list[str] = field(default_factory=list)
    stats: PipelineStats = field(default_factory=PipelineStats)
    notes: list[str] = field(default_factory=list)

    def take(self, seconds: float, told: Failure | Note | None) -> None:
        """Count a clip; one that was cut off is listed at once, for it is not tried again after a kill."""
        if isinstance(told, Failure):
            self.failures.append(told)
            return
        self.written += 1
        self.seconds += 0.0 if math.isnan(seconds) else seconds
        if told and told.track:
            self.tracks.append(told)
        if told and told.cut_off:
            self.truncated.append(told)
            self.truncated_file = write_truncated(self.cache, [told], [told.id])


def plan(media: str | os.PathLike[str], cache: str | os.PathLike[str], settings: ExtractSettings) -> ExtractPlan:
    """Find the media, describe the backbone and look what the cache already holds. Writes nothing.

    Raises:
        MediaListError, BackboneError, ExtractSettingsError: the input cannot be used.
        StaleCacheError: the cache holds features made otherwise.
    """
    container = open_container(cache)
    _refuse_to_share(cache, settings)
    sources = find_media(media, settings.media_root)
    identity = identify(settings.backbone, settings.revision)
    index, count = settings.shard_numbers()
    share = windows(sources, settings.max_seconds)[index::count]
    stored, done, changed = None, frozenset[str](), list[str]()
    if container.read_attributes() is not None:
        with open_cache(cache) as store:
            stored, done = store.header, frozenset(store.ids)
            share = windows(_called_as_stored(sources, done), settings.max_seconds)[index::count]
            changed = [source.id for window in share for source in window if _changed(source, store)]
    container.close()
    in_cache = stored.fingerprint.get("precision") if stored else None
    precision, reason = settings.resolved_precision(identity.precisions, in_cache)
    header = make_header(identity, settings, precision)
    if stored:
        header.must_match(stored, os.fspath(cache))
    refresh = frozenset(changed) if settings.refresh else frozenset[str]()
    return ExtractPlan(
        windows=share,
        present=frozenset(source.id for window in share for source in window if source.id in done) - refresh,
        changed=changed,
        refresh=refresh,
        left_out=left_out(media),
        header=header,
        identity=identity,
        precision_reason=reason,
    )


def _changed(source: Source, store: FeatureCache) -> bool:
    """Whether the medium of a clip that the cache holds is another now."""
    medium = store.medium(source.id) if source.id in store else None
    return medium is not None and medium.changed(source.path)


def extract(
    media: str | os.PathLike[str],
    cache: str | os.PathLike[str],
    settings: ExtractSettings | None = None,
    *,
    on_plan: Callable[[ExtractPlan], None] | None = None,
    on_progress: Progress | None = None,
    stats: PipelineStats | None = None,
) -> ExtractSummary:
    """Extract the features of all media that the cache lacks; unreadable files are collected, not raised.

    Interrupted at any moment, the cache keeps what was committed, and the same call goes on from there.

    Args:
        media: folder, CSV or list; see `extract.sources.find_media`.
        cache: `NAME.zarr` or `NAME.h5`, created where missing.
        settings: how to extract.
        on_plan: called once before work starts.
        on_progress: called after each clip.
        stats: filled as the run goes on.

    Raises:
        EmiError: see `plan`; nothing was written then.
    """
    settings = settings or ExtractSettings()
    planned = plan(media, cache, settings)
    if on_plan:
        on_plan(planned)
    summary = ExtractSummary(
        cache=os.fspath(cache),
        present=len(planned.present),
        changed=[id for id in planned.changed if id not in planned.refresh],
        stats=stats or PipelineStats(),
    )
    if not planned.todo:
        seal(cache)
        return summary
    tried: set[str] = set()

    def on_result(id: str, seconds: float, told: Failure | Note | None) -> None:
        tried.add(id)
        summary.take(seconds, told)
        if on_progress:
            on_progress(len(tried), planned.todo, min(settings.max_seconds, seconds))  # this order, for NaN

    try:
        if settings.engine == "ray":
            from extract.workers.ray_engine import run_ray

            summary.notes = run_ray(planned, settings, summary.cache, summary.stats, on_result)
        elif (processes := settings.resolved_processes()) > 1 and not _one_process_only(cache):
            with CacheWriter(cache, planned.header):
                pass  # made once, before many open it
            summary.notes = run_processes(planned, settings, summary.cache, processes, summary.stats, on_result)
        else:
            fill(planned, settings, summary.cache, summary.stats, on_result)
    finally:
        summary.failures_file = write_failures(summary.cache, summary.failures, {*planned.present, *tried})
        used = tried - {failure.id for failure in summary.failures}
        summary.truncated_file = write_truncated(summary.cache, summary.truncated, used)
    summary.present += planned.todo - len(tried)  # those that another process wrote meanwhile
    if planned.identity.note:
        summary.notes = [planned.identity.note, *summary.notes]
    return summary


def _called_as_stored(sources: Sequence[Source], done: Collection[str]) -> list[Source]:
    """The sources by the ids that a cache has for them, which in an older one need not be in NFC."""
    others = {stored_form(id): id for id in done if not id.isascii()}
    return sorted(replace(source, id=others.get(source.id, source.id)) for source in sources)


def _one_process_only(cache: str | os.PathLike[str]) -> str | None:
    """Why a cache can be written by one process only, or None where it can be by many."""
    if open_container(cache).one_writer:
        return "one process at a time writes an HDF5 file"
    return "memory:// is that of one process" if os.fspath(cache).startswith("memory://") else None


def _refuse_to_share(cache: str | os.PathLike[str], settings: ExtractSettings) -> None:
    """Raise where several processes were asked for, and the cache takes one."""
    wanted = "--engine ray" if settings.engine == "ray" else f"--processes {settings.processes}"
    if (settings.processes > 1 or settings.engine == "ray") and (reason := _one_process_only(cache)):
        raise ExtractSettingsError(f"{wanted}: {reason}; use a cache NAME.zarr in a folder or an object store")
    if settings.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ExtractSettingsError(
            "--engine ray needs Ray, which is not installed here: pip install 'emi-mimicry[ray]'"
        )


def make_header(identity: Identity, settings: ExtractSettings, precision: str) -> Header:
    """The cache header for a backbone and settings: the fingerprint names everything that changes a number."""
    fingerprint: dict[str, Any] = {
        **identity.fingerprint,
        "decoder": DECODER,
        **({} if settings.track is None else {"track": settings.track}),
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
            LICENCE: identity.licence.to_dict(),
            **({"revision": identity.revision} if identity.revision else {}),
            "python": platform.python_version(),
            "emi": version(),
            **{name: metadata.version(name) for name in ("torch", "torchaudio", "transformers", "av", "silero-vad")},
        },
    )
