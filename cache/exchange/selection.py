"""The clips that are exported, read piece by piece so that memory stays flat."""

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cache.errors import CacheError
from cache.format import Clip
from cache.maintenance.verify import Progress
from cache.reader import FeatureCache

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
        """Bytes of one frame with its VAD."""
        return self.store.dim * self.store.header.dtype.itemsize + 4 * len(self.store.vad_names)

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
            self.count(len(clip.frames))

    def count(self, frames: int) -> None:
        """Report that one more clip is done."""
        self.done += 1
        if self.on_progress:
            self.on_progress(self.done, len(self.ids), frames * self.store.hop_seconds)
