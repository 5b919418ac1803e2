"""Compute a clip that is too long to hold, in blocks where the backbone can; memory is then that of its frames."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch

from cache.format import Array
from cache.system.memory import memory_bytes
from extract.backbones import Backbone, Blockwise, BlockwiseAtTimes
from extract.errors import MediaError
from extract.modality.protocol import Modality, Recording


@dataclass(frozen=True)
class LongFeatures:
    """The features of one clip as in `cache.format.Clip`, and its cost."""

    frames: Array
    vad: Array | None
    vad_pooled: Array | None
    cost: int


def compute_long(
    backbone: Backbone, modality: Modality, recording: Recording, device: torch.device, dtype: torch.dtype
) -> LongFeatures:
    """Read a long clip and run the backbone over it.

    Args:
        backbone: on `device`.
        modality: of the clip.
        recording: the clip.
        device: where the blocks are sent.
        dtype: of the frames when they leave the device.

    Raises:
        MediaError: the file cannot be read, or the backbone needs the clip whole and there is too little memory.
    """
    cost = 0

    def blocks() -> Iterator[torch.Tensor]:
        nonlocal cost
        for block in recording:
            cost += len(block)
            yield torch.from_numpy(block).to(device)

    if hasattr(backbone, "in_blocks"):
        if recording.times is not None and hasattr(backbone, "at_times"):
            frames = cast(BlockwiseAtTimes, backbone).at_times(blocks(), torch.from_numpy(recording.times))
        else:
            frames = cast(Blockwise, backbone).in_blocks(blocks())
        parts = (stored(rows, dtype).cpu().numpy() for rows in frames)
        return LongFeatures(_joined(parts), None, None, cost)
    whole: list[torch.Tensor] = []
    for block in blocks():
        whole.append(block)
        _refuse_too_long(cost / modality.cost_per_second, modality.bytes_per_second, device)
    features = backbone([torch.cat(whole)])
    vad, pooled = (None if a is None else a.cpu().numpy() for a in (features.vad, features.vad_pooled))
    whole_frames = stored(features.frames, dtype).cpu().numpy()
    return LongFeatures(whole_frames, vad, None if pooled is None else pooled[0], cost)


def _joined(parts: Iterable[Array]) -> Array:
    """Join rows as they come, in one array that grows where it lies: a list of parts would be in memory beside it."""
    rows, used = np.empty((0, 0)), 0
    for part in parts:
        if rows.dtype != part.dtype:
            rows = part.copy() if not used else rows.astype(part.dtype)
        if used + len(part) > len(rows):
            rows.resize((max(used + len(part), len(rows) * 5 // 4), part.shape[1]), refcheck=False)
        rows[used : used + len(part)] = part
        used += len(part)
    rows.resize((used, *rows.shape[1:]), refcheck=False)
    return rows


def stored(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert to the storage dtype, unless a value overflows: the cache then names the clip."""
    if dtype != torch.float16:
        return frames.to(dtype)
    half = frames.half()
    exponents = half.view(torch.int16) & 0x7C00
    return half if int(exponents.max()) < 0x7C00 else frames


def _refuse_too_long(seconds: float, bytes_per_second: int, device: torch.device) -> None:
    """Refuse what would fill the memory of this machine, where the kernel ends the process instead of raising."""
    if device.type != "cpu":
        return
    memory = memory_bytes()
    if seconds * bytes_per_second > memory:
        raise MediaError(
            f"is longer than {seconds:.0f} s, and this backbone computes whole clips, which takes more than the "
            f"{memory / 2**30:.0f} GiB of this machine; make another cache with --max-seconds, split the file, or use "
            "silero or Whisper, which compute long clips in blocks"
        )
