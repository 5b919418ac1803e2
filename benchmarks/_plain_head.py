"""The head and the data set that users write by hand, which emi's training and sweeps are measured beside."""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from train_head.data.splits import Split


class Clips(Dataset[tuple[Tensor, Tensor]]):
    """One clip after the other, float32, as a DataLoader wants them."""

    def __init__(self, split: Split) -> None:
        self.clips, self.targets = list(split.only.chunks()), split.targets

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.clips[row].float(), self.targets[row]


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad with zeros."""
    clips, targets = zip(*items, strict=True)
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(list(clips), batch_first=True), lengths, torch.stack(targets)


class PlainHead(nn.Module):
    """The paper's head as its formula says."""

    def __init__(self, dim: int, hidden: int, targets: int, *, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.lstm = nn.LSTM(dim, hidden, 2, batch_first=True, dropout=0.1)
        width = dim + hidden
        self.regressor = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, targets))

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) → (batch, targets)."""
        mean = frames.sum(1) / lengths[:, None]
        if self.packed:
            sequence = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
            last = self.lstm(sequence)[1][0][-1]
        else:
            states, _ = self.lstm(frames)
            last = states[torch.arange(len(frames)), lengths - 1]
        out: Tensor = self.regressor(torch.cat([mean, last], 1))
        return out
