"""The network of configs/va.toml and its data set as users write them, which emi's training is measured beside."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import Dataset

from train_head.data.windows import make_windows

Item = tuple[Tensor, Tensor, Tensor]
"""(rows, 512) and (rows, 128) features and (rows, 2) labels of a window."""


class Windows(Dataset[Item]):
    """Windows of clips, float32, as a DataLoader wants them."""

    def __init__(
        self, visual: Sequence[Tensor], audio: Sequence[Tensor], labels: Sequence[Tensor], window: int, hop: int
    ) -> None:
        self.visual, self.audio, self.labels = visual, audio, labels
        self.windows = make_windows([len(part) for part in labels], window, hop)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Item:
        window = self.windows[number]
        rows = slice(window.first, window.first + window.rows)
        parts = (self.visual, self.audio, self.labels)
        visual, audio, labels = (part[window.clip][rows].float() for part in parts)
        return visual, audio, labels


def collate(items: Sequence[Item]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad with zeros, labels with -5; the last is (batch, rows) True behind a window's end."""
    visual, audio, labels = zip(*items, strict=True)
    pad = nn.utils.rnn.pad_sequence
    lengths = torch.tensor([len(part) for part in labels])
    outside = torch.arange(int(lengths.max())) >= lengths[:, None]
    return pad(visual, batch_first=True), pad(audio, batch_first=True), pad(labels, True, -5.0), outside


class Block(nn.Module):
    """Two weight-normed causal convolutions with LeakyReLU, and a 1×1 residual."""

    def __init__(self, dim: int, hidden: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.before = (kernel - 1) * dilation
        self.one = weight_norm(nn.Conv1d(dim, hidden, kernel, dilation=dilation))
        self.two = weight_norm(nn.Conv1d(hidden, hidden, kernel, dilation=dilation))
        self.down = nn.Conv1d(dim, hidden, 1) if dim != hidden else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, channels: Tensor) -> Tensor:
        """(batch, dim, rows) → (batch, hidden, rows)."""
        found = channels
        for conv in (self.one, self.two):
            found = self.dropout(functional.leaky_relu(conv(functional.pad(found, (self.before, 0)))))
        return functional.leaky_relu(found + self.down(channels))


class PlainNetwork(nn.Module):
    """A TCN per stream → concat → 1×1 convolutions → transformer encoder → linear."""

    def __init__(self, visual: int = 512, audio: int = 128) -> None:
        super().__init__()
        self.visual = nn.Sequential(*(Block(128 if i else visual, 128, 5, 2**i, 0.1) for i in range(4)))
        self.audio = nn.Sequential(*(Block(32 if i else audio, 32, 5, 2**i, 0.1) for i in range(4)))
        self.fuse = nn.Sequential(nn.Conv1d(160, 256, 1), nn.LeakyReLU(0.1), nn.Conv1d(256, 128, 1))
        layer = nn.TransformerEncoderLayer(128, 4, 128, 0.3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4)
        self.out = nn.Linear(128, 2)

    def forward(self, visual: Tensor, audio: Tensor, outside: Tensor) -> Tensor:
        """(batch, rows, 512) and (batch, rows, 128) → (batch, rows, 2)."""
        states = torch.cat([self.visual(visual.transpose(1, 2)), self.audio(audio.transpose(1, 2))], dim=1)
        rows = self.encoder(self.fuse(states).transpose(1, 2), src_key_padding_mask=outside)
        values: Tensor = self.out(rows)
        return values


def ccc_loss(predicted: Tensor, labels: Tensor) -> Tensor:
    """1 - CCC over the annotated rows of a batch, mean of both targets; (batch, rows, 2) each."""
    known = (labels != -5).all(dim=-1)
    p, y = predicted[known].float(), labels[known]
    apart = (p - p.mean(0)) * (y - y.mean(0))
    ccc = 2 * apart.mean(0) / (p.var(0, correction=0) + y.var(0, correction=0) + (p.mean(0) - y.mean(0)).square())
    return (1 - ccc).mean()
