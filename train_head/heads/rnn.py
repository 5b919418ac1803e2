"""Heads that read the frames with an LSTM or a GRU, the paper's among them.

Batches are padded and the last valid state is taken, which gives the numbers of a PackedSequence at ten times its speed
on CPU: a recurrent layer in one direction never sees the padding behind a clip before the clip's last state.
"""

from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from train_head.heads.options import OUTPUTS, HeadOptions, Regressor
from train_head.heads.pooling import last_valid, masked, reverse, segment_lengths, segment_means, time_mean
from train_head.heads.recurrent import cudnn_states, lstm_states

Rnn = TypeVar("Rnn", nn.LSTM, nn.GRU)


@dataclass(frozen=True, kw_only=True)
class LstmOptions(HeadOptions):
    """Settings of `LstmHead`; the defaults are the paper's.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size (1027 in the paper).
        layers: stacked LSTM layers.
        dropout: between the LSTM layers.
        global_vector: whether the time mean of the input stands beside the last state.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 0
    layers: int = 2
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


@dataclass(frozen=True, kw_only=True)
class GruOptions(LstmOptions):
    """Settings of `GruHead`, named as those of `LstmHead`; dropout also stands before the regressor's layers."""

    hidden: int = 256


@dataclass(frozen=True, kw_only=True)
class BilstmOptions(LstmOptions):
    """Settings of `BilstmHead`, named as those of `LstmHead`; dropout also stands before the regressor's layers.

    Attributes:
        hidden: size of the state in each direction; 0 takes the input's size.
        layers: stacked layers; each reads both directions of the one below.
    """

    hidden: int = 128


@dataclass(frozen=True, kw_only=True)
class HierarchicalOptions(HeadOptions):
    """Settings of `HierarchicalHead`.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size.
        layers: stacked LSTM layers.
        pool_frames: frames per segment; 10 are 0.2 s at 50 Hz, about a syllable.
        dropout: between the LSTM layers, and before the regressor's layers.
        global_vector: whether the time mean of the input stands beside the last state.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 2
    pool_frames: int = 10
    dropout: float = 0.1
    global_vector: bool = True
    output: str = "linear"


@dataclass(frozen=True, kw_only=True)
class SequenceOptions(HeadOptions):
    """Settings of `SequenceHead`.

    Attributes:
        hidden: size of the LSTM's state; 0 takes the input's size.
        layers: stacked LSTM layers.
        dropout: between the LSTM layers, and before the linear layer.
        output: "linear", "tanh" or "sigmoid".
    """

    hidden: int = 256
    layers: int = 2
    dropout: float = 0.1
    output: str = "linear"


class LstmHead(nn.Module):
    """LSTM → concat [time mean of the input, last state] → Linear → Tanh → Linear (arXiv 2403.11879, section 3)."""

    Options = LstmOptions

    def __init__(self, dim: int, targets: int, options: LstmOptions) -> None:
        super().__init__()
        self.lstm = _stacked(nn.LSTM, dim, options)
        self.regressor = Regressor(dim, self.lstm.hidden_size, targets, options, dropout=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        states = lstm_states(self.lstm, frames)  # (batch, frames, hidden)
        return self.regressor.predict(last_valid(states, lengths), frames, lengths)


class GruHead(nn.Module):
    """The same with a GRU, three gates instead of four, and dropout in the regressor."""

    Options = GruOptions

    def __init__(self, dim: int, targets: int, options: GruOptions) -> None:
        super().__init__()
        self.gru = _stacked(nn.GRU, dim, options)
        self.regressor = Regressor(dim, self.gru.hidden_size, targets, options)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        states = cudnn_states(self.gru, frames)  # (batch, frames, hidden)
        return self.regressor.predict(last_valid(states, lengths), frames, lengths)


class BilstmHead(nn.Module):
    """Bidirectional LSTM → concat [time mean, last state forwards, last state backwards] → Linear → Tanh → Linear.

    Each direction is an LSTM that reads forwards, and the second one gets each clip reversed within its own length.
    That gives the numbers of a packed bidirectional LSTM without packing, which on CPU costs ten times the time.
    """

    Options = BilstmOptions

    def __init__(self, dim: int, targets: int, options: BilstmOptions) -> None:
        super().__init__()
        hidden = options.hidden or dim
        sizes = [dim] + [2 * hidden] * (options.layers - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(options.dropout)
        self.regressor = Regressor(dim, 2 * hidden, targets, options)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        frames = masked(frames, lengths)
        ahead, turned = self._read(0, frames, lengths)
        for layer in range(1, len(self.forwards)):
            states = torch.cat([ahead, reverse(turned, lengths)], dim=2)  # (batch, frames, 2 hidden)
            ahead, turned = self._read(layer, self.dropout(states), lengths)
        summary = torch.cat([last_valid(ahead, lengths), last_valid(turned, lengths)], dim=1)
        return self.regressor.predict(summary, frames, lengths)

    def _read(self, layer: int, frames: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """States of both directions, (batch, frames, hidden) each in the order in which it reads."""
        turned = reverse(frames, lengths)
        ahead, back = cast(nn.LSTM, self.forwards[layer]), cast(nn.LSTM, self.backwards[layer])
        return lstm_states(ahead, frames), lstm_states(back, turned)


class HierarchicalHead(nn.Module):
    """Means of segments → LSTM → concat [time mean of the input, last state] → Linear → Tanh → Linear.

    It keeps the order of a clip's parts at a fraction of an LSTM's steps. The last segment of a clip averages the
    frames it has.
    """

    Options = HierarchicalOptions

    def __init__(self, dim: int, targets: int, options: HierarchicalOptions) -> None:
        super().__init__()
        self.lstm = _stacked(nn.LSTM, dim, options)
        self.pool_frames = options.pool_frames
        self.regressor = Regressor(dim, self.lstm.hidden_size, targets, options)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        states = lstm_states(self.lstm, segment_means(frames, lengths, self.pool_frames))  # (batch, segments, hidden)
        return self.regressor.predict(last_valid(states, segment_lengths(lengths, self.pool_frames)), frames, lengths)


class SequenceHead(nn.Module):
    """LSTM → Linear per frame; a clip's prediction is the mean over its frames, which also draw a timeline.

    A value at a frame depends on the frames up to it, never on later ones.
    """

    Options = SequenceOptions

    def __init__(self, dim: int, targets: int, options: SequenceOptions) -> None:
        super().__init__()
        self.lstm = _stacked(nn.LSTM, dim, options)
        self.dropout = nn.Dropout(options.dropout)
        self.linear = nn.Linear(self.lstm.hidden_size, targets)
        self.output = OUTPUTS[options.output]()

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, frames, targets), zeros behind each clip's end."""
        states = lstm_states(self.lstm, masked(frames, lengths))
        return masked(self.output(self.linear(self.dropout(states))), lengths)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets)."""
        return time_mean(self.per_frame(frames, lengths), lengths)


def _stacked(kind: type[Rnn], dim: int, options: LstmOptions | HierarchicalOptions | SequenceOptions) -> Rnn:
    """Return recurrent layers with dropout between them."""
    between = options.dropout if options.layers > 1 else 0.0
    return kind(dim, options.hidden or dim, options.layers, batch_first=True, dropout=between)
