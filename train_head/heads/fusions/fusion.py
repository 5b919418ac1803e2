"""What a fusion is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from train_head.heads.pooling import never_empty

Widths = Mapping[str, int]
"""Size of the vectors of each stream."""
Regressor = Callable[[str], nn.Module]
"""Makes the layers from a vector to the targets that the head of a stream has, by the stream's name."""


class Reading(Enum):
    """What a fusion reads of a stream: its summary, its state at each reference row, or all its states."""

    SUMMARY = "summary"
    AT_CLOCK = "states at the reference clock"
    STATES = "states on the stream's own clock"


@dataclass(frozen=True)
class Part:
    """What a fusion gets of one stream.

    Attributes:
        vectors: (batch, width) summaries, (batch, reference rows, width) states that hold then, or (batch, steps,
            width) states; a learned vector where there is nothing of the stream.
        present: bool, of the leading sizes of `vectors`: where there is something of the stream. Of `Reading.STATES`,
            which of them count, at least one per clip.
    """

    vectors: Tensor
    present: Tensor


class Fusion(nn.Module):
    """Maps what it reads of every stream to one value per target.

    Args:
        widths: size of each stream's vectors.
        targets: values that are predicted.
        options: an instance of `Options`.
        regressor: makes the last layers of a stream's head, for fusions that have none of their own.

    Attributes:
        row_by_row: whether values of a reference row depend on the vectors of that row only.
        by_times: whether streams are joined at the times of their rows for targets per clip too (`clock`).
    """

    Options: ClassVar[Any]
    row_by_row: ClassVar[bool] = True
    by_times: ClassVar[bool] = False

    def __init__(self, widths: Widths, targets: int, options: Any, regressor: Regressor) -> None:  # noqa: ARG002
        super().__init__()

    @classmethod
    def reads(cls, streams: Sequence[str], options: Any, *, rows: bool) -> dict[str, Reading]:  # noqa: ARG003
        """Return what is read of each stream.

        Args:
            streams: their names.
            options: an instance of `Options`.
            rows: for targets per reference row instead of per clip.
        """
        return dict.fromkeys(streams, Reading.AT_CLOCK if rows else Reading.SUMMARY)

    def forward(self, parts: Mapping[str, Part]) -> Tensor:
        """Fuse a batch.

        Returns:
            (batch, targets); of states at the reference clock, (batch, reference rows, targets).
        """
        raise NotImplementedError


def any_present(parts: Mapping[str, Part]) -> Tensor:
    """(batch, reference rows) True where some stream has something; at least once per clip."""
    return never_empty(torch.stack([part.present for part in parts.values()]).any(dim=0))
