"""What an encoder is: rows of one stream in, a state per row and a summary per clip out."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from train_head.heads.pooling import last_valid, masked, row_mask, time_mean


@dataclass(frozen=True)
class Encoded:
    """What an encoder gives of a batch of one stream.

    Attributes:
        summary: (batch, `summary_width`), one vector per clip.
        states: (batch, steps, `state_width`), state k of the rows from k * `stride`; None where the encoder has a
            summary only.
    """

    summary: Tensor
    states: Tensor | None = None


class Encoder(nn.Module):
    """Maps the rows of one stream to states and a summary.

    Rows behind a clip's end, rows that are not valid and neighbours in a batch never change a clip's result.

    Args:
        dim: size of a row.
        width: size of what `encode` gives.
        global_vector: whether the time mean of the input stands in the summary, before the rest (the paper's global
            vector).

    Attributes:
        gives_states: whether there is a state per row, without which targets per frame are refused; of the class.
        summary_width: size of a clip's summary.
        state_width: size of a state; 0 where there are none.
        stride: rows per state.
        reach: rows before and after its own that a state sees; None where it may see the whole clip.
        wants_states: whether somebody reads the states; an encoder to which they are extra work may leave them out.
    """

    gives_states: ClassVar[bool] = True
    stride: int = 1
    reach: tuple[int, int] | None = None
    wants_states: bool = True

    def __init__(self, dim: int, width: int, *, global_vector: bool = False) -> None:
        super().__init__()
        self.global_vector = global_vector
        self.state_width, self.summary_width = width * self.gives_states, width + dim * global_vector

    def forward(self, rows: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Encoded:
        """Encode a batch.

        Args:
            rows: (batch, rows, dim); anything may stand behind a clip's end and in rows that are not valid.
            lengths: (batch,) int64, at least 1.
            valid: (batch, rows) bool; None where every row within its clip is.
        """
        inside = row_mask(rows, lengths, valid)
        summary, states = self.encode(rows, inside, lengths)
        if self.global_vector:
            summary = torch.cat([time_mean(rows, inside), summary], dim=1)
        return Encoded(summary, states)

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the summary of each clip, without the global vector, and its states.

        Args:
            rows: as `forward` gets them.
            inside: (batch, rows) bool, the valid rows of each clip.
            lengths: (batch,) int64, at least 1.

        Returns:
            (batch, width), and (batch, steps, width) or None.
        """
        raise NotImplementedError


class RecurrentEncoder(Encoder):
    """States of a recurrent network, of which the last one is the summary."""

    def read(self, rows: Tensor) -> Tensor:
        """(batch, rows, dim), zero outside, → (batch, rows, hidden) states."""
        raise NotImplementedError

    def encode(self, rows: Tensor, inside: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """See `Encoder`: padding behind a clip is never seen before the clip's last state."""
        states = self.read(masked(rows, inside))
        return last_valid(states, lengths), states
