"""Read every stored byte of a cache and name what is damaged."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from cache import fingerprint as fp
from cache.containers.by_suffix import open_container
from cache.containers.container import Container, SegmentIndex
from cache.errors import CacheNotFoundError
from cache.format import Header, extras_crc32c
from cache.gather import read_segment
from cache.index import LoadedIndex, load_index, read_segment_index
from cache.paths import StrPath
from cache.sources import read_sources

Progress = Callable[[int, int, float], None]
"""Called with clips handled so far, clips in all, and the seconds of audio of those handled since the last call."""


@dataclass(frozen=True, kw_only=True)
class DamagedClip:
    """A clip with something wrong.

    Attributes:
        id: of the clip.
        segment: that holds it.
        reason: what is wrong.
        lost: whether its numbers are gone; else only what lies around them is damaged.
    """

    id: str
    segment: str
    reason: str
    lost: bool = True


@dataclass(kw_only=True)
class Verification:
    """What reading a whole cache found.

    Attributes:
        clips: that were read, those in damaged segments included.
        segments: that were read.
        bytes: of features that were read.
        damaged: every clip with something wrong.
        unreadable: segments whose index is gone, so that their clips' names may not be known, and why.
        structure: what is wrong with bytes that belong to no clip.
        leftovers: (number, bytes) of segments that a crash left unfinished; no damage.
    """

    clips: int = 0
    segments: int = 0
    bytes: int = 0
    damaged: list[DamagedClip] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    structure: list[str] = field(default_factory=list)
    leftovers: tuple[int, int] = (0, 0)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.damaged or self.unreadable or self.structure)


def verify(path: StrPath, on_progress: Progress | None = None) -> Verification:
    """Check every segment's index and every clip's bytes against their checksums, many at once.

    Args:
        path: `NAME.zarr` or `NAME.h5`.
        on_progress: called after each run of clips.

    Raises:
        CacheNotFoundError: nothing is there.
        CacheFormatError: not a feature cache, or its header is damaged.
    """
    with contextlib.closing(open_container(path)) as container:
        header, found = open_damaged(container)
        report = Verification(
            segments=len(found.segments),
            bytes=sum(int(segment.offsets[-1]) for segment in found.segments) * header.dim * header.dtype.itemsize,
            unreadable=dict(found.broken),
            structure=[*container.problems(), *problems_of_extras(container)],
            leftovers=container.leftovers(),
        )
        if found.damaged_blocks:
            report.structure.append(f"{found.damaged_blocks} blocks of the index do not match their checksum")
        for name, reason in found.broken.items():
            with contextlib.suppress(Exception):  # a container may raise anything over damaged bytes
                ids = container.read_segment(name)[1]["ids"].tolist()
                report.damaged += [DamagedClip(id=str(i), segment=name, reason=f"its index: {reason}") for i in ids]
        total = sum(len(segment.ids) for segment in found.segments)
        for segment in found.segments:
            lost: dict[int, str] = {}
            for run, wrong in read_segment(container, header, segment):
                lost |= wrong
                report.clips += len(run.clips)
                if on_progress:
                    on_progress(report.clips, total, float(np.nansum(segment.seconds[list(run.clips)])))
            report.damaged += [
                DamagedClip(id=segment.ids[number], segment=segment.name, reason=why) for number, why in lost.items()
            ]
            around = _problem_around(container, header, segment, in_block=segment.name not in found.uncovered)
            if around:
                report.damaged += [
                    DamagedClip(id=clip_id, segment=segment.name, reason=around, lost=False)
                    for number, clip_id in enumerate(segment.ids)
                    if number not in lost
                ]
        return report


def open_damaged(container: Container) -> tuple[Header, LoadedIndex]:
    """The header and index of a cache of which parts may be damaged.

    Raises:
        CacheNotFoundError, CacheFormatError: there is none, or its header cannot be read.
    """
    attributes = container.read_attributes()
    if attributes is None:
        raise CacheNotFoundError(
            f"there is no feature cache at {container.path}; make one with `emi extract MEDIA --cache {container.path}`"
        )
    header = Header.from_attributes(attributes, container.path)
    return header, load_index(container, header)


def _problem_around(container: Container, header: Header, segment: SegmentIndex, *, in_block: bool) -> str | None:
    """What is wrong with the stored bytes of a segment beside its rows."""
    try:
        if in_block:
            own = read_segment_index(container, segment.name, fp.digest(header.fingerprint))
            if dict(own.attributes) != dict(segment.attributes):
                return "its segment's attributes are not those it was written with"
        read_sources(container, segment)
        problems = container.problems(segment)
    except Exception as error:  # a container may raise anything over damaged bytes
        return f"its segment's index: {error}"
    return problems[0] if problems else None


def problems_of_extras(container: Container) -> list[str]:
    """What is wrong with the extra arrays of a cache."""
    attributes = container.read_attributes() or {}
    if "extras_crc32c" not in attributes:
        return []
    try:
        intact = extras_crc32c(container.read_extras()) == attributes["extras_crc32c"]
    except Exception as error:  # a container may raise anything over damaged bytes
        return [f"the extras cannot be read: {error!r}"]
    return [] if intact else ["the extras do not match their checksum"]
