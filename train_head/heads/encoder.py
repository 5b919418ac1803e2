"""What an encoder is: rows of one stream in, a state per row and a summary per clip out."""

from dataclasses import dataclass

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

    Attributes:
        summary_width: size of a clip's summary.
        state_width: size of a state; 0 where there are none.
        stride: rows per state.
        reach: rows before and after its own that a state sees; None where it may see the whole clip.
        wants_states: whether somebody reads the states; an encoder to which they are extra work may leave them out.
    """

    summary_width: int
    state_width: int = 0
    stride: int = 1
    reach: tuple[int, int] | None = None
    wants_states: bool = True

    def forward(self, rows: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Encoded:
        """Encode a batch.

        Args:
            rows: (batch, rows, dim); anything may stand behind a clip's end and in rows that are not valid.
            lengths: (batch,) int64, at least 1.
            valid: (batch, rows) bool; None where every row within its clip is.
        """
        raise NotImplementedError


class RecurrentEncoder(Encoder):
    """States of a recurrent network; the summary is the last one, beside the time mean of the input.

    Args:
        dim: size of a row.
        hidden: size of a state.
        global_vector: whether the time mean of the input stands in the summary, before the last state.
    """

    def __init__(self, dim: int, hidden: int, *, global_vector: bool) -> None:
        super().__init__()
        self.global_vector = global_vector
        self.state_width, self.summary_width = hidden, hidden + dim * global_vector

    def read(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(batch, rows, dim), zero outside, → (batch, rows, hidden) states."""
        raise NotImplementedError

    def forward(self, rows: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Encoded:
        """See `Encoder`: padding behind a clip is never seen before the clip's last state."""
        inside = row_mask(rows, lengths, valid)
        rows = masked(rows, inside)
        states = self.read(rows, lengths)
        last = last_valid(states, lengths)
        return Encoded(with_mean(rows, inside, last) if self.global_vector else last, states)


def with_mean(rows: Tensor, inside: Tensor, summary: Tensor) -> Tensor:
    """Put the time mean of the rows inside their clips before a summary: the paper's global vector."""
    return torch.cat([time_mean(rows, inside), summary], dim=1)
