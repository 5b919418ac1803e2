"""Backbone and head as one module: waveforms in, what the loss sees out."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from extract.backbones import Trainable
from train_head.data.names import UNNAMED
from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings
from train_head.training.predictor import Predictor


class BackboneWithHead(nn.Module):
    """Waveforms → frames ⊕ frame-wise VAD → the head of the cached mode, which may read cached streams too.

    Args:
        backbone: a torch module that gives `Features`.
        predictor: standardisation and head, the same module that `train_head` trains.
        dtype: of the head's matrix products; the backbone knows its own.
        changes: how the frames of all streams are changed in training.
        stream: name of the stream that the backbone gives.
    """

    def __init__(
        self,
        backbone: Trainable,
        predictor: Predictor,
        dtype: torch.dtype,
        changes: AugmentSettings | None = None,
        stream: str = UNNAMED,
    ) -> None:
        super().__init__()
        self.backbone = cast(Any, backbone)
        self.predictor = predictor
        self.stream = stream
        self._dtype, self._changes = dtype, changes or AugmentSettings()

    def frames(self, clips: Sequence[Tensor], samples: Sequence[int] = (), below: int = 0) -> tuple[Tensor, Tensor]:
        """Return what the head reads of the backbone.

        Args:
            clips: (samples,) float32 each, 16 kHz, not normalised; or outputs of the backbone's lowest stages.
            samples: for such outputs, the number of samples of each clip.
            below: for such outputs, the number of these stages.

        Returns:
            (batch, frames, dim) float32 zero-padded, time-major in memory as in the cached mode; (batch,) lengths.
        """
        features = self.backbone.above(clips, samples, below) if below else self.backbone(clips)
        rows = features.frames if features.vad is None else torch.cat([features.frames, features.vad], dim=1)
        lengths = torch.tensor(features.lengths, device=rows.device)
        padded = nn.utils.rnn.pad_sequence(list(rows.float().split(list(features.lengths))))  # (frames, batch, dim)
        return padded.transpose(0, 1), lengths

    def forward(
        self,
        clips: Sequence[Tensor],
        samples: Sequence[int] = (),
        below: int = 0,
        cached: Mapping[str, Rows] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(batch, targets * columns per target) float32; in training with a generator the frames are augmented.

        Args:
            clips: see `frames`.
            samples: see `frames`.
            below: see `frames`.
            cached: rows of the other streams.
            generator: where the chance of augmentation comes from.
        """
        frames, lengths = self.frames(clips, samples, below)
        batch = Batch({self.stream: Rows(frames, lengths), **(cached or {})}, frames.new_zeros(len(lengths), 0))
        if generator is not None:
            batch = augment_batch(batch, self._changes, generator)
        with torch.autocast(frames.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.predictor.outputs(batch.streams)

    def predict(
        self,
        clips: Sequence[Tensor],
        samples: Sequence[int] = (),
        below: int = 0,
        cached: Mapping[str, Rows] | None = None,
    ) -> Tensor:
        """(batch, targets) float32 intensities, not clipped to [0, 1]."""
        frames, lengths = self.frames(clips, samples, below)
        with torch.autocast(frames.device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self.predictor({self.stream: Rows(frames, lengths), **(cached or {})})
