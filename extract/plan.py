"""Which clips are computed together: windows and batches, planned without decoding anything or importing torch.

A window is a fixed run of consecutive sources, and its batches are planned from all its clips before any is skipped
because the cache has it. Batches therefore depend on the whole input only, not on what was done before: a resumed or
sharded run computes each clip among the same neighbours, hence the same bytes.
"""

from collections.abc import Sequence

from extract.settings import SAMPLE_RATE
from extract.sources import Source

WINDOW_CLIPS = 128
WINDOW_SECONDS = 1536.0
"""Bounds of a window; three of them are in memory at a time (3 x 98 MB of float32 at most)."""


def windows(sources: Sequence[Source], max_seconds: float) -> list[Sequence[Source]]:
    """Cut the sorted sources into the windows within which batches are planned."""
    size = max(1, min(WINDOW_CLIPS, int(WINDOW_SECONDS / max_seconds)))
    return [sources[i : i + size] for i in range(0, len(sources), size)]


def plan_batches(num_samples: Sequence[int], batch_seconds: float) -> list[list[int]]:
    """Group clips of similar length so that clips x longest clip stays within a bound.

    Args:
        num_samples: samples of each clip.
        batch_seconds: the bound; a single longer clip is a batch of its own.

    Returns:
        Indices of each batch, longest clips first, so that a lack of memory shows at the start.
    """
    order = sorted(range(len(num_samples)), key=lambda i: (-num_samples[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and (len(batches[-1]) + 1) * num_samples[batches[-1][0]] <= batch_seconds * SAMPLE_RATE:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
