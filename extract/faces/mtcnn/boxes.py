"""Boxes as (boxes, 4) left, top, right, bottom in pixels: overlaps, suppression of doubles, squares."""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]
_BLOCK = 1024


def overlaps(first: Boxes, second: Boxes, *, of_smaller: bool = False) -> NDArray[np.float32]:
    """Return (first, second) intersections over unions, or over the smaller of both areas.

    Over the smaller area, sizes count whole pixels (right - left + 1), as in the detector's original.
    """
    pixel = np.float32(of_smaller)
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:4], second[None, :, 2:4])
    common = np.maximum(high - low + pixel, 0).prod(axis=2)
    a, b = ((boxes[:, 2:4] - boxes[:, :2] + pixel).prod(axis=1) for boxes in (first, second))
    whole = np.minimum(a[:, None], b) if of_smaller else a[:, None] + b - common
    return common / np.maximum(whole, np.float32(1e-9))


def without_doubles(
    boxes: Boxes, scores: NDArray[np.float32], threshold: float, *, of_smaller: bool = False
) -> NDArray[np.int64]:
    """Return the indices of the boxes that no box with a higher score, itself kept, overlaps by more than a threshold.

    This is greedy non-maximum suppression, in blocks of the order of scores, so that memory is bounded.
    """
    order = np.argsort(-scores, kind="stable")
    kept = order[:0]
    for at in range(0, len(order), _BLOCK):
        block = order[at : at + _BLOCK]
        block = block[~(overlaps(boxes[block], boxes[kept], of_smaller=of_smaller) > threshold).any(axis=1)]
        covers = np.triu(overlaps(boxes[block], boxes[block], of_smaller=of_smaller) > threshold, 1)
        before, keep = np.zeros(len(block), bool), np.ones(len(block), bool)
        while not np.array_equal(keep, before):  # at most as often as the longest chain of boxes
            before, keep = keep, np.logical_not((covers & keep[:, None]).any(axis=0))
        kept = np.concatenate([kept, block[keep]])
    return kept


def corrected(boxes: Boxes, corrections: NDArray[np.float32], pixel: int = 1) -> Boxes:
    """Move the four edges of boxes by fractions of width and height, which count `pixel` more than the difference."""
    size = boxes[:, 2:4] - boxes[:, :2] + np.float32(pixel)
    return boxes[:, :4] + corrections * np.tile(size, 2)


def squares(boxes: Boxes) -> Boxes:
    """Return squares with the centres and the longer sides of boxes."""
    size = boxes[:, 2:4] - boxes[:, :2]
    side = size.max(axis=1, keepdims=True)
    corner = boxes[:, :2] + size * np.float32(0.5) - side * np.float32(0.5)
    return np.concatenate([corner, corner + side], axis=1)
