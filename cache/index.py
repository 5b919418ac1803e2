"""Which clips a cache holds and where they lie: one record per segment, and many records packed into one block.

Each segment carries its own index, which costs a few milliseconds to read through zarr or h5py. So that opening a cache
does not pay that for each of its segments, a writer packs the index of many segments into one *block* now and then
(`cache.writer`), and a reader looks into those segments only that no block covers. Blocks repeat what the segments say
and may be lost without harm; where a segment is lost, they still know its clips.
"""

import contextlib
import itertools
import json
import struct
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from cache import fingerprint as fp
from cache.containers.container import Container, SegmentIndex, segment_name
from cache.format import Array, Header, index_crc32c, little_endian
from cache.sources import REFRESHED

_MAGIC = b"EMIINDX1"
_HEAD = struct.Struct("<8sI")
"""Magic, CRC-32C of the rest."""
_SIZES = struct.Struct("<QQ")
"""Of the JSON head and of the ids."""
_ATTEMPTS = 5
"""To read an index that is compacted under one's eyes."""
_THREADS = 16
"""Segments whose index is fetched at once: what counts at an object store is waiting."""


@dataclass(frozen=True)
class LoadedIndex:
    """All segments of a cache in order, with what was found wrong.

    Attributes:
        segments: those that can be used, in the order of writing, but first those whose clips were extracted again, the
            newest first: of a clip that several hold, the first counts.
        uncovered: names of segments that no block covers.
        lost: names of segments that a block covers and that are not there.
        replaced: names of segments that are still there, and that another has taken the place of.
        broken: segments that no block covers and whose own index cannot be read, and why.
        damaged_blocks: how many blocks could not be read; harmless.
    """

    segments: Sequence[SegmentIndex]
    uncovered: Sequence[str]
    lost: frozenset[str]
    replaced: frozenset[str]
    broken: Mapping[str, str]
    damaged_blocks: int


def load_index(container: Container, header: Header) -> LoadedIndex:
    """Read the index of every segment, from blocks where there are some.

    Blocks are read before the segments are listed: one that `compact` removes in between is named in the `replaces` of
    the segment that took its place. Where a segment goes after it was listed, or seems lost (an HDF5 file may have
    been replaced between two reads), everything is read again.
    """
    digest, lost = fp.digest(header.fingerprint), frozenset[str]()
    for _ in range(_ATTEMPTS):
        loaded = _load(container, digest)
        listed = not loaded.broken or loaded.broken.keys() <= set(container.segment_names())
        if listed and loaded.lost == lost:
            break
        lost = loaded.lost
    return loaded


def _load(container: Container, digest: str) -> LoadedIndex:
    covered: dict[str, SegmentIndex] = {}
    damaged = 0
    for block in container.read_blocks():
        try:
            for segment in unpack(block):
                if segment.attributes.get("fingerprint_sha256") == digest:
                    covered.setdefault(segment.name, segment)
        except ValueError:
            damaged += 1
    there = container.segment_names(covered)
    uncovered = [name for name in there if name not in covered]
    with ThreadPoolExecutor(_THREADS) as threads:
        read = dict(
            zip(uncovered, threads.map(lambda name: _try_to_read(container, name, digest), uncovered), strict=True)
        )
    every = covered | {name: segment for name, segment in read.items() if isinstance(segment, SegmentIndex)}
    replaced = {old for segment in every.values() for old in segment.attributes.get("replaces", ())}
    refreshed = {name for name, segment in every.items() if segment.attributes.get(REFRESHED)}
    in_order = [*sorted(refreshed, reverse=True), *sorted(every.keys() - refreshed)]
    return LoadedIndex(
        segments=[every[name] for name in in_order if name not in replaced],
        uncovered=[name for name in uncovered if name not in replaced],
        lost=frozenset(covered.keys() - set(there) - replaced),
        replaced=frozenset(replaced.intersection(there)),
        broken={name: why for name, why in read.items() if isinstance(why, str) and name not in replaced},
        damaged_blocks=damaged,
    )


def _try_to_read(container: Container, name: str, digest: str) -> SegmentIndex | str:
    """Return a segment's own index, or what is wrong with it."""
    try:
        return read_segment_index(container, name, digest)
    except Exception as error:  # a container may raise anything over damaged bytes
        return str(error) if isinstance(error, ValueError) else repr(error)


def read_segment_index(container: Container, name: str, digest: str) -> SegmentIndex:
    """Read and check the index that a segment carries.

    Args:
        container: of the cache.
        name: of the segment.
        digest: of the fingerprint that the cache's header states.

    Raises:
        Exception: it is missing or damaged; a container may raise anything over damaged bytes.
        ValueError: it does not match its checksum, or was made with another fingerprint.
    """
    return checked_index(name, *container.read_segment(name), digest)


def checked_index(
    name: str, attributes: Mapping[str, Any], arrays: Mapping[str, Array], places: Mapping[str, Any], digest: str
) -> SegmentIndex:
    """Return the index of a segment from what `Container.read_segment` read.

    Raises:
        ValueError: it does not match its checksum, or was made with another fingerprint.
    """
    ids = arrays["ids"].tolist()
    offsets, seconds, checksums = (np.asarray(arrays[key]) for key in ("offsets", "seconds", "checksums"))
    if index_crc32c(ids, offsets, seconds, checksums) != attributes["index_crc32c"]:
        raise ValueError("the index does not match its checksum")
    if (attributes["clips"], attributes["frames"]) != (len(ids), int(offsets[-1])):
        raise ValueError("its attributes and its index count differently")
    if attributes.get("fingerprint_sha256") != digest:
        raise ValueError("it was made with another fingerprint than the cache's header states")
    return SegmentIndex(
        name=name,
        attributes=attributes,
        ids=ids,
        offsets=offsets,
        seconds=seconds,
        checksums=checksums,
        places=places,
    )


def write_block(container: Container, names: Collection[str], header: Header) -> None:
    """Pack the index of segments that no block covers, so that their clips are known should they get lost.

    Nothing may fail for it: the segments are committed.
    """
    with contextlib.suppress(Exception):
        digest = fp.digest(header.fingerprint)
        if segments := [read_segment_index(container, name, digest) for name in names]:
            container.write_block(segment_name(), pack(segments))


def pack(segments: Sequence[SegmentIndex]) -> bytes:
    """Lay the index of many segments out as one block: a JSON head, then ids (each ended by NUL), then three arrays."""
    ids = ["".join(f"{clip_id}\0" for clip_id in segment.ids).encode() for segment in segments]
    head = json.dumps(
        [
            {"name": s.name, "attributes": dict(s.attributes), "places": dict(s.places), "clips": len(s.ids)}
            for s in segments
        ],
        separators=(",", ":"),
    ).encode()
    columns = [getattr(segment, name) for name in ("offsets", "seconds", "checksums") for segment in segments]
    arrays = (little_endian(column).tobytes() for column in columns)
    body = b"".join([_SIZES.pack(len(head), sum(map(len, ids))), head, *ids, *arrays])
    return _HEAD.pack(_MAGIC, google_crc32c.value(body)) + body


def places_in(block: bytes) -> dict[str, Any]:
    """Return the `places` of each segment that a block covers, by name; none where the block is damaged."""
    try:
        return {entry["name"]: entry["places"] for entry in _checked(block)[0]}
    except ValueError:
        return {}


def unpack(block: bytes) -> list[SegmentIndex]:
    """Read a block back.

    Raises:
        ValueError: its bytes do not match their checksum.
    """
    head, at, ids_size = _checked(block)
    body = memoryview(block)
    ids = bytes(body[at : at + ids_size]).decode().split("\0")
    at += ids_size
    clips = sum(entry["clips"] for entry in head)
    offsets = np.frombuffer(body, "<i8", clips + len(head), at)
    seconds = np.frombuffer(body, "<f8", clips, at + offsets.nbytes)
    checksums = np.frombuffer(body, "<u4", clips, at + offsets.nbytes + seconds.nbytes)
    bounds = itertools.pairwise(itertools.accumulate((entry["clips"] for entry in head), initial=0))
    return [
        SegmentIndex(
            name=entry["name"],
            attributes=entry["attributes"],
            ids=ids[first:last],
            offsets=offsets[first + number : last + number + 1],
            seconds=seconds[first:last],
            checksums=checksums[first:last],
            places=entry["places"],
        )
        for number, (entry, (first, last)) in enumerate(zip(head, bounds, strict=True))
    ]


def _checked(block: bytes) -> tuple[list[dict[str, Any]], int, int]:
    """The head of a block, where its ids begin, and their size."""
    magic, crc = _HEAD.unpack_from(block) if len(block) >= _HEAD.size else (b"", 0)
    if magic != _MAGIC or google_crc32c.value(block[_HEAD.size :]) != crc:
        raise ValueError("the block does not match its checksum")
    head_size, ids_size = _SIZES.unpack_from(block, _HEAD.size)
    begin = _HEAD.size + _SIZES.size
    return json.loads(block[begin : begin + head_size]), begin + head_size, ids_size
