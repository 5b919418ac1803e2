"""Read rows of a local Zarr array as zarr would, without zarr: the layout that we write is bytes at known places.

zarr-python takes 1.5 ms to open an array and decodes each chunk through its event loop; a split of a thousand clips is
gathered ten times faster from the shard files themselves. Only the layout of `zarr_group` is read here: uncompressed
inner chunks in shards. For any other `row_layout` is None, and zarr reads.
"""

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from cache.containers.file_rows import copy_from_file, row_views
from cache.format import Array
from cache.system.disk import open_binary, read_at

_INNER = [{"name": "bytes", "configuration": {"endian": "little"}}]
_SHARD_INDEX = [*_INNER, {"name": "crc32c"}]
_KEYS = {"name": "default", "configuration": {"separator": "/"}}
_DTYPES = {"float16": "<f2", "float32": "<f4", "bool": "?"}


@dataclass(frozen=True)
class RowLayout:
    """Where the rows of an array lie: `shard_rows` to a file, in pieces of `chunk_rows`."""

    folder: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int
    row_bytes: int
    chunk_offsets: dict[int, Sequence[int]] = field(default_factory=dict, compare=False, repr=False)
    """By shard, as far as they have been read."""

    def shard(self, number: int) -> str:
        """Return the file of a shard."""
        return "/".join([self.folder, "c", str(number), *["0"] * (len(self.shape) - 1)])


def row_layout(folder: Path) -> RowLayout | None:
    """Read an array's `zarr.json`; None where zarr itself has to read the array.

    Raises:
        OSError, ValueError, LookupError: it is missing or damaged.
    """
    metadata = json.loads((folder / "zarr.json").read_text("utf-8"))
    (codec, *others), grid = metadata["codecs"], metadata["chunk_grid"]
    shape = tuple(metadata["shape"])
    if (
        others
        or codec["name"] != "sharding_indexed"
        or codec["configuration"]["codecs"] != _INNER
        or codec["configuration"]["index_codecs"] != _SHARD_INDEX
        or codec["configuration"].get("index_location") != "end"
        or grid["name"] != "regular"
        or metadata["chunk_key_encoding"] != _KEYS
        or metadata["data_type"] not in _DTYPES
        or metadata.get("storage_transformers")
    ):
        return None
    shard, chunk = grid["configuration"]["chunk_shape"], codec["configuration"]["chunk_shape"]
    columns = shape[1:]
    if tuple(shard[1:]) != columns or tuple(chunk[1:]) != columns or shard[0] % chunk[0]:
        return None
    dtype = np.dtype(_DTYPES[metadata["data_type"]])
    return RowLayout(str(folder), shape, dtype, chunk[0], shard[0], dtype.itemsize * math.prod(columns))


def read_rows(layout: RowLayout, starts: Sequence[int], outs: Sequence[Array]) -> None:
    """Fill C-contiguous arrays with rows, each from its start on.

    Raises:
        OSError: a file is missing or too short.
        ValueError: an array does not fit, or a chunk is missing.
    """
    of_shard: dict[int, list[tuple[int, int, memoryview]]] = {}
    for start, view in row_views(layout.shape, layout.dtype, starts, outs):
        while view:
            shard, first = divmod(start, layout.shard_rows)
            chunk, within = divmod(first, layout.chunk_rows)
            count = min(len(view) // layout.row_bytes, layout.chunk_rows - within)
            of_shard.setdefault(shard, []).append((chunk, within, view[: count * layout.row_bytes]))
            view, start = view[count * layout.row_bytes :], start + count
    for shard, pieces in of_shard.items():
        descriptor = open_binary(layout.shard(shard))
        try:
            offsets = _chunk_offsets(descriptor, layout, shard)
            places = ((offsets[chunk] + within * layout.row_bytes, part) for chunk, within, part in pieces)
            copy_from_file(descriptor, places)
        finally:
            os.close(descriptor)


def shard_problems(layout: RowLayout) -> list[str]:
    """Where the bytes around the rows are not what they were written as: the list of chunks, and the padding."""
    problems = []
    for shard in range(-(-layout.shape[0] // layout.shard_rows)):
        file = layout.shard(shard)
        try:
            content = np.memmap(file, np.uint8, "r")
            table = content[-16 * (layout.shard_rows // layout.chunk_rows) - 4 :]
            if google_crc32c.value(table[:-4]) != int(table[-4:].view("<u4")[0]):
                raise ValueError("its list of chunks does not match its checksum")
            rows = min(layout.shape[0] - shard * layout.shard_rows, layout.shard_rows)
            whole, rest = divmod(rows, layout.chunk_rows)
            if rest:
                end = int(table[16 * whole : 16 * whole + 8].view("<u8")[0]) + layout.chunk_rows * layout.row_bytes
                if content[end - (layout.chunk_rows - rest) * layout.row_bytes : end].any():
                    raise ValueError("its padding is not zero")
        except (OSError, ValueError, IndexError) as error:
            problems.append(f"{file}: {error}")
    return problems


def _chunk_offsets(descriptor: int, layout: RowLayout, shard: int) -> Sequence[int]:
    """Where each chunk of a shard begins in its file: the list at the file's end, read once."""
    if shard not in layout.chunk_offsets:
        size = 16 * (layout.shard_rows // layout.chunk_rows)
        table = read_at(descriptor, size, os.fstat(descriptor).st_size - size - 4)
        layout.chunk_offsets[shard] = [offset for offset, _ in struct.iter_unpack("<QQ", table)]
    return layout.chunk_offsets[shard]
