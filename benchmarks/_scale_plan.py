"""What so many hours take in an object store: counted on a few segments in memory, then multiplied."""

import argparse
import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks._timing import figure

DIM, FRAMES_PER_SECOND = 1024, 50
VAD = ("arousal", "dominance", "valence")
SAMPLE_SEGMENTS, JOINED = 10, 5
"""Segments of 16 MiB, and how many of them are made one: more than a shard of a compacted segment holds."""
ROOT = "emi-scale/plan.zarr"
REQUESTS = {
    "get": "get",
    "exists": "get",
    "set": "put",
    "list": "list",
    "list_prefix": "list",
    "list_dir": "list",
    "delete_dir": "list",
}
"""Methods of zarr's store, and the request that each sends at least one of; deleting is free where this was planned."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was counted on a cache of a few segments.

    Attributes:
        clips: in the cache.
        segments: in the cache.
        metadata_objects: of one segment.
        shard_bytes: of the array `frames`.
        bytes_per_clip: of each array of a segment, as it is stored.
        requests: that writing the segments and their index sent.
        index_objects: of the one block of the index.
        index_bytes: of that block, per clip.
        read_gets: to read all clips once.
    """

    clips: int
    segments: int
    metadata_objects: int
    shard_bytes: int
    bytes_per_clip: dict[str, float]
    requests: Counter[str]
    index_objects: int
    index_bytes: float
    read_gets: int

    def objects(self, clips: int) -> int:
        """Of a segment with so many clips: metadata, one chunk of ids, and the shards of every other array."""
        sizes = [clips * size for array, size in self.bytes_per_clip.items() if array != "ids"]
        return self.metadata_objects + 1 + sum(math.ceil(size / self.shard_bytes) for size in sizes)


def plan(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two rows: the cache as it is extracted, and compacted.

    Args:
        rows: of the growth table, in the order of size.
        options: hours, clip_seconds and prices.
    """
    from cache.maintenance.rewrite import SEGMENT_BYTES
    from cache.writer import SEGMENTS_PER_BLOCK

    clips = round(options.hours * 3600 / options.clip_seconds)
    planned = []
    for state, sample in take_samples(round(options.clip_seconds * FRAMES_PER_SECOND)).items():
        compacted = state == "compacted"
        per = int(SEGMENT_BYTES // sample.bytes_per_clip["frames"]) if compacted else sample.clips // sample.segments
        segments = math.ceil(clips / per)
        blocks = 1 if compacted else math.ceil(segments / SEGMENTS_PER_BLOCK)
        row: dict[str, Any] = {
            "name": f"{options.hours:,.0f} hours, {state}",
            "clips": clips,
            "bytes": round(clips * sum(sample.bytes_per_clip.values())),
            "clips_per_segment": per,
            "segments": segments,
            "shard_bytes": sample.shard_bytes,
            "objects_per_segment": sample.objects(per),
            "objects": segments * sample.objects(per) + blocks * sample.index_objects,
            "blocks": blocks,
            "index_bytes": round(clips * sample.index_bytes),
            "lists": round(segments * sample.requests["list"] / sample.segments),
            "gets_to_read_all": round(clips * sample.read_gets / sample.clips),
        }
        once = sample.segments * sample.objects(sample.clips // sample.segments) + sample.index_objects
        row["puts"] = row["objects"] + sample.requests["put"] - once  # groups above the segments are put again
        variants = sorted({measured["per_segment"] for measured in rows})
        row |= extrapolated(rows, variants[-1 if compacted else -2], clips) | costs(row, options)
        planned.append(row)
    return planned


def extrapolated(rows: Sequence[dict[str, Any]], per_segment: int, clips: int) -> dict[str, float]:
    """Opening so many clips, from the largest Zarr cache that was built with so many in a segment; at least linear."""
    last = [row for row in rows if row["container"] == ".zarr" and row["per_segment"] == per_segment][-1]
    times = clips / last["clips"]
    return {
        "open_seconds": last["open_seconds"] * times ** max(1.0, last.get("growth_exponent", 1.0)),
        "open_mb": last["libraries_mb"] + (last["peak_mb"] - last["libraries_mb"]) * times,
    }


def costs(row: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """In dollars, at prices that are assumed."""
    return {
        "usd_per_month": row["bytes"] / 1e9 * options.usd_per_gb_month,
        "usd_to_write": (row["puts"] + row["lists"]) / 1000 * options.usd_per_1000_puts,
        "usd_to_read_all": row["gets_to_read_all"] / 1000 * options.usd_per_1000_gets,
    }


def take_samples(frames: int) -> dict[str, Sample]:
    """Write segments of the paper's features into an object store in memory, and compact them."""
    import fsspec

    from cache import CacheWriter, Clip, Header
    from cache.maintenance.rewrite import compact
    from cache.writer import SEGMENT_BYTES

    header = Header(fingerprint={"dtype": "float16"}, dim=DIM, vad_names=VAD)
    features, vad = np.ones((frames, DIM), np.float16), np.ones((frames, 3), np.float32)
    clips = SAMPLE_SEGMENTS * (SEGMENT_BYTES // features.nbytes)

    def extract() -> None:
        with CacheWriter(f"memory://{ROOT}", header) as writer:
            for i in range(clips):
                writer.add(Clip(f"speaker{i // 1000:05d}/{i:08d}", features, vad, vad[0], frames / FRAMES_PER_SECOND))

    with CacheWriter(f"memory://{ROOT}", header):
        pass  # the root of the cache is not counted
    try:
        return {
            "as extracted": take_sample(extract),
            "compacted": take_sample(lambda: compact(f"memory://{ROOT}", segment_bytes=JOINED * SEGMENT_BYTES)),
        }
    finally:
        fsspec.filesystem("memory").rm(f"/{ROOT}", recursive=True)


def take_sample(write: Callable[[], object]) -> Sample:
    """Count what a piece of writing leaves and sends, and what reading it back sends.

    Raises:
        ValueError: the objects of a segment are not those that `Sample.objects` says.
    """
    import fsspec
    import zarr

    from cache import open_cache
    from cache.containers.by_suffix import open_container
    from cache.index import pack, read_segment_index

    with counted_requests() as requests:
        write()
        written = Counter(requests)
        store = open_cache(f"memory://{ROOT}")
        requests.clear()
        store.load(store.ids)
        read_gets = requests["get"]
    container = open_container(f"memory://{ROOT}")
    digest = container.read_segment(store.segments[0])[0]["fingerprint_sha256"]
    block = pack([read_segment_index(container, name, digest) for name in store.segments])
    group = zarr.open_group(f"memory://{ROOT}", path=f"segments/{store.segments[0]}", mode="r")
    frames: Any = group["frames"]
    keys = [key.partition(f"{ROOT}/")[2] for key in fsspec.filesystem("memory").find(f"/{ROOT}")]
    of_segment = [key for key in keys if key.startswith(f"segments/{store.segments[0]}/")]
    of_index = [key for key in keys if key.startswith("index/") and key != "index/zarr.json"]
    clips = len(store) // len(store.segments)
    sample = Sample(
        clips=len(store),
        segments=len(store.segments),
        metadata_objects=sum(key.endswith("zarr.json") for key in of_segment),
        shard_bytes=(frames.shards or frames.chunks)[0] * DIM * 2,
        bytes_per_clip={name: array.nbytes / clips for name, array in group.arrays()},  # type: ignore[union-attr]
        requests=written,
        index_objects=len(of_index),
        index_bytes=len(block) / len(store),
        read_gets=read_gets,
    )
    if sample.objects(clips) != len(of_segment):
        raise ValueError(f"a segment has {len(of_segment)} objects, and {sample.objects(clips)} were expected")
    return sample


@contextlib.contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count what zarr asks of a store that is reached through fsspec."""
    from zarr.storage import FsspecStore

    counts: Counter[str] = Counter()
    real = {name: getattr(FsspecStore, name) for name in REQUESTS}

    def counting(name: str) -> Any:
        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            counts[REQUESTS[name]] += 1
            return real[name](self, *arguments, **options)

        return method

    for name in REQUESTS:
        setattr(FsspecStore, name, counting(name))
    try:
        yield counts
    finally:
        for name, method in real.items():
            setattr(FsspecStore, name, method)


def print_plan(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> None:
    """Markdown, ready for docs/scale.md."""
    lines = {
        "clips": ("clips", 1),
        "TB of features": ("bytes", 1e-12),
        "clips a segment": ("clips_per_segment", 1),
        "segments": ("segments", 1),
        "MiB in a shard": ("shard_bytes", 2**-20),
        "objects a segment": ("objects_per_segment", 1),
        "objects": ("objects", 1),
        "GB of index": ("index_bytes", 1e-9),
        "s to open (extrapolated)": ("open_seconds", 1),
        "GB of memory to open (extrapolated)": ("open_mb", 1e-3),
        "PUT requests to write": ("puts", 1),
        "LIST requests to write": ("lists", 1),
        "GET requests to read all once": ("gets_to_read_all", 1),
        "USD a month for storage": ("usd_per_month", 1),
        "USD of requests to write": ("usd_to_write", 1),
        "USD of requests to read all once": ("usd_to_read_all", 1),
    }
    print(f"| {options.hours:,.0f} hours | {' | '.join(row['name'].partition(', ')[2] for row in rows)} |")
    print("|---|---|---|")
    for title, (key, factor) in lines.items():
        print(f"| {title} | {' | '.join(figure(row[key] * factor) for row in rows)} |")
    print(
        f"\nClips of {options.clip_seconds} s, {FRAMES_PER_SECOND} frames a second, {DIM} float16 and three VAD values "
        f"a frame. Prices are assumptions: {options.usd_per_gb_month} USD per GB and month, per 1,000 PUT or LIST "
        f"{options.usd_per_1000_puts}, per 1,000 GET {options.usd_per_1000_gets}. Compacting writes anew, and reads "
        "all twice."
    )
