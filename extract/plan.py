"""What an extraction has to do: the clips that the cache lacks, the batches to compute them in, the cache's header.

A window is a fixed run of consecutive clips. Its batches are planned from all of its clips, including those that the
cache already holds. Batches therefore depend on the whole input only: a resumed or sharded run computes each clip in
the same batch, and so gets the same bytes.

Planning decodes nothing, and imports torch only where the precision depends on the device.
"""

import contextlib
import importlib.util
import os
import platform
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata

from cache.containers.by_suffix import open_container
from cache.format import Header
from cache.ids import stored_form
from cache.licences import LICENCE
from cache.paths import StrPath
from cache.reader import open_cache
from cache.version import version
from extract.backbones import Identity, identify
from extract.errors import ExtractSettingsError
from extract.faces.image_times import with_videos
from extract.modality.protocol import Modality
from extract.modality.registry import MODALITIES
from extract.settings import ExtractSettings
from extract.sources import Source, find_media, left_out

WINDOW_CLIPS = 128
"""Maximum number of clips in a window; three windows are in memory at a time. See also `Modality.window_seconds`."""


@dataclass(frozen=True, kw_only=True)
class ExtractPlan:
    """What a run would do.

    Attributes:
        windows: the clips of this job's share, sorted by id, in the windows in which batches are planned.
        present: ids in this share that the cache holds, without those in `refresh`.
        changed: ids in this share that the cache holds, and whose media files have changed since.
        refresh: ids of `changed` that are extracted again.
        left_out: number of files in a media folder that are skipped for their suffix, by suffix.
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
    def modality(self) -> Modality:
        """What the backbone takes."""
        return MODALITIES[self.identity.modality]

    @property
    def sources(self) -> list[Source]:
        """The clips of all windows."""
        return [source for window in self.windows for source in window]

    @property
    def todo(self) -> int:
        """Number of clips to extract."""
        return sum(map(len, self.windows)) - len(self.present)

    def share(self, number: int, count: int) -> "ExtractPlan":
        """Return a plan for every `count`-th window, starting at window `number`."""
        part = replace(self, windows=self.windows[number::count])
        return replace(part, present=frozenset(s.id for s in part.sources if s.id in self.present))


def plan(media: StrPath, cache: StrPath, settings: ExtractSettings) -> ExtractPlan:
    """Find the media, describe the backbone, and read what the cache holds. Write nothing.

    Raises:
        MediaListError, BackboneError, ExtractSettingsError: the input cannot be used.
        StaleCacheError: the cache holds features that were made with other settings.
    """
    with contextlib.closing(open_container(cache)) as container, contextlib.ExitStack() as opened:
        _check_sharing(cache, settings)
        identity = identify(settings.backbone, settings.revision, settings.layer, settings.pooling)
        _check_clock(identity, settings)
        faces = identity.modality == "face"
        sources = find_media(media, settings.media_root, images=faces)
        if faces and settings.videos is not None:
            sources = with_videos(sources, settings.videos)
        store = opened.enter_context(open_cache(cache)) if container.read_attributes() is not None else None
        stored, done = (store.header, frozenset(store.ids)) if store else (None, frozenset[str]())
        index, count = settings.shard_numbers()
        # an older cache may have ids that are not in NFC; its clips keep them
        stored_ids = {stored_form(id): id for id in done if not id.isascii()}
        sources = sorted(replace(s, id=stored_ids[s.id]) if s.id in stored_ids else s for s in sources)
        share = windows(sources, MODALITIES[identity.modality], settings.max_seconds)[index::count]
        present = [source for window in share for source in window if source.id in done]
        changed = [s.id for s in present if store and (medium := store.medium(s.id)) and medium.changed(s.path)]
    in_cache = stored.fingerprint.get("precision") if stored else None
    precision, reason = settings.resolved_precision(identity.precisions, in_cache)
    header = make_header(identity, settings, precision)
    if stored:
        header.must_match(stored, os.fspath(cache))
    refresh = frozenset(changed) if settings.refresh else frozenset[str]()
    return ExtractPlan(
        windows=share,
        present=frozenset(source.id for source in present) - refresh,
        changed=changed,
        refresh=refresh,
        left_out=left_out(media, images=faces),
        header=header,
        identity=identity,
        precision_reason=reason,
    )


def make_header(identity: Identity, settings: ExtractSettings, precision: str) -> Header:
    """Return the header of a cache. Its fingerprint names everything that changes a stored number."""
    modality = MODALITIES[identity.modality]
    hop = modality.hop_seconds(identity, settings)
    return Header(
        fingerprint={
            **identity.fingerprint,
            **modality.fingerprint(settings),
            **({"hop": hop} if identity.any_hop and hop not in (None, identity.hop_seconds) else {}),
            "precision": precision,
            "dtype": settings.dtype,
        },
        dim=identity.dim,
        vad_names=identity.vad_names,
        hop_seconds=hop,
        modality=identity.modality,
        optional=(*(("times",) if hop is None else ()), *(("valid",) if modality.marks else ())),
        provenance={
            "source": identity.source,
            LICENCE: identity.licence.to_dict(),
            **({"revision": identity.revision} if identity.revision else {}),
            "python": platform.python_version(),
            "emi": version(),
            **{name: metadata.version(name) for name in modality.packages},
        },
    )


def windows(sources: Sequence[Source], modality: Modality, max_seconds: float | None) -> list[Sequence[Source]]:
    """Cut the sorted clips into the windows in which batches are planned."""
    longest = modality.longest_held if max_seconds is None else max_seconds
    size = max(1, min(WINDOW_CLIPS, int(modality.window_seconds / longest)))
    return [sources[i : i + size] for i in range(0, len(sources), size)]


def plan_batches(costs: Sequence[int], limit: float) -> list[list[int]]:
    """Group clips of similar cost so that clips x costliest clip stays within a limit.

    Args:
        costs: of each clip (`Modality.cost`): samples of audio.
        limit: in the same unit; a clip above it is a batch by itself.

    Returns:
        Indices of the clips in each batch, costliest clips first, so that a lack of memory shows at the start.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * costs[batches[-1][0]] <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def single_process_reason(cache: StrPath) -> str | None:
    """Return why only one process at a time can write a cache, or None where several can."""
    if open_container(cache).one_writer:
        return "an HDF5 file is written by one process at a time"
    return "memory:// belongs to one process" if os.fspath(cache).startswith("memory://") else None


def _check_clock(identity: Identity, settings: ExtractSettings) -> None:
    """Refuse options that say when rows are, where the backbone's rows are elsewhere."""
    options = {"--hop": settings.hop is not None, "--fps native": settings.fps is None and identity.modality == "audio"}
    for option in (option for option, given in options.items() if given and not identity.any_hop):
        raise ExtractSettingsError(
            f"{option} says when the rows of vggish and mfcc are, and the backbone {identity.source!r} has rows of its "
            "own; leave it out"
        )


def _check_sharing(cache: StrPath, settings: ExtractSettings) -> None:
    """Refuse several processes where the cache takes one, and Ray where it is not installed."""
    ray = settings.engine == "ray"
    if (ray or settings.processes > 1) and (reason := single_process_reason(cache)):
        option = "--engine ray" if ray else f"--processes {settings.processes}"
        raise ExtractSettingsError(f"{option}: {reason}; use a cache NAME.zarr in a folder or an object store")
    if ray and importlib.util.find_spec("ray") is None:
        raise ExtractSettingsError(
            "--engine ray needs Ray, which is not installed here: pip install 'emi-mimicry[ray]'"
        )
