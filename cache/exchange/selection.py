"""The clips of an export, read piece by piece so that memory stays flat, and its manifest, which says what it holds.

The manifest is written into an export, so that it is never taken for that of another cache.
"""

import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from cache import fingerprint as fp
from cache.errors import CacheError
from cache.format import AUDIO, Clip
from cache.maintenance.verify import Progress
from cache.reader import FeatureCache

FORMAT = "emi-export"
VERSION = 1
MANIFEST = "export.json"
"""The file in a folder that holds the manifest."""
KEY = b"emi_export"
"""The key of the manifest in the metadata of a Parquet file."""
CHUNK_BYTES = 8 << 20
"""Frames held in memory at a time; a row group of Parquet, whose writer takes a dozen times as much: 0.3 GB in all."""
UNNAMEABLE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""What the operating system says where a path cannot be a file, whatever room or right there is."""


class ExportError(CacheError, ValueError):
    """A cache cannot be exported as asked for."""


@dataclass(kw_only=True)
class Selection:
    """The clips to export, and what is said about them.

    Attributes:
        store: the cache.
        ids: of the clips, in the order of the export.
        manifest: what the export is made from, JSON-able.
        on_progress: called after each clip.
        done: clips handled so far.
    """

    store: FeatureCache
    ids: Sequence[str]
    manifest: dict[str, Any]
    on_progress: Progress | None = None
    done: int = 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of one frame with its VAD, times and mark."""
        layouts = self.store.header.layout.values()
        return sum(layout.dtype.itemsize * math.prod(layout.shape) for layout in layouts if layout.by_frame)

    def chunks(self) -> Iterator[list[str]]:
        """Cut the ids so that the frames of each part take `CHUNK_BYTES` at most, or are one clip."""
        offsets = self.store.offsets(self.ids)
        first = 0
        for i in range(1, len(self.ids)):
            if (offsets[i + 1] - offsets[first]) * self.frame_bytes > CHUNK_BYTES:
                yield list(self.ids[first:i])
                first = i
        yield list(self.ids[first:])

    def clips(self, ids: Sequence[str]) -> Iterator[Clip]:
        """Read clips one by one, and count them."""
        for clip_id in ids:
            clip = self.store[clip_id]
            yield clip
            self.count(self.store.header.duration(clip))

    def count(self, seconds: float) -> None:
        """Report that one more clip, with features of so many seconds, is done."""
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, len(self.ids), seconds)


class ExportExistsError(CacheError, FileExistsError):
    """Something else lies where an export should go; it is left as it was."""


def manifest_of(store: FeatureCache, kind: str, ids: Sequence[str]) -> dict[str, Any]:
    """What an export is made from: equal manifests mean equal exports."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "fingerprint": store.fingerprint,
        "dim": store.dim,
        "vad_names": list(store.vad_names),
        "hop_seconds": store.hop_seconds,
    }
    if store.header.modality != AUDIO:
        manifest["modality"] = store.header.modality
    if store.header.optional:
        manifest["optional"] = list(store.header.optional)
    offsets = store.offsets(ids)  # raises where an id is unknown
    if kind != "npz":  # which may gain clips, and checks each by itself
        seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
        content = "".join(f"{clip_id}\0{store.checksum(clip_id)}\0{seconds[clip_id]!r}\0" for clip_id in ids)
        manifest |= {
            "clips": len(ids),
            "frames": int(offsets[-1]),
            "content_crc32c": int(google_crc32c.value(content.encode())),
        }
    return manifest


def must_fit(place: Path, manifest: dict[str, Any]) -> bool:
    """Whether an export made from the same is at a place; False where the place is free.

    Raises:
        ExportExistsError: something else is there.
    """
    if not os.path.lexists(place) or (manifest["kind"] != "parquet" and place.is_dir() and not any(place.iterdir())):
        return False
    found = read_manifest(place, manifest["kind"])
    if found is None:
        raise ExportExistsError(f"{place} is there, and no export of a cache; choose another OUT, or remove it")
    differing = fp.differences(found["fingerprint"], manifest["fingerprint"]) + [
        f"{key} (there {found.get(key)}, wanted {manifest.get(key)})"
        for key in dict.fromkeys([*manifest, *found])
        if key != "fingerprint" and found.get(key) != manifest.get(key)
    ]
    if differing:
        raise ExportExistsError(
            f"{place} was exported from something else: {'; '.join(differing)}. Choose another OUT, or remove it"
        )
    return True


def read_manifest(place: Path, kind: str) -> dict[str, Any] | None:
    """What the export at a place was made from.

    Args:
        place: a folder; a file where the kind is `parquet`.
        kind: of `cache.exchange.exporting.KINDS`. All but `parquet` are told apart by what the manifest says only.

    Returns:
        The manifest; None where there is nothing, or no export.
    """
    try:
        if kind == "parquet":
            import pyarrow.parquet

            text = pyarrow.parquet.read_metadata(place).metadata[KEY]
        else:
            text = (place / MANIFEST).read_bytes()
        found = json.loads(text)
        return found if found["format"] == FORMAT and isinstance(found["fingerprint"], dict) else None
    except Exception:  # whatever it is, it is no export
        return None
