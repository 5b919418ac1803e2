"""Backbone and head as one module: clips in, what the loss sees out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from extract.backbones import Trainable
from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings


class BackboneWithHead(nn.Module):
    """Clips → frames ⊕ frame-wise VAD → the head of the cached mode, which may read cached streams too.

    Args:
        backbone: a torch module that gives `Features`.
        predictor: standardisation and head, the same module that `train_head` trains.
        settings: how the frames are changed, and streams left out, in training.
        dtype: of the head's matrix products; the backbone knows its own.
        stream: name of the stream that the backbone gives.
        hop: seconds from one frame of it to the next; None where nothing says so.
    """

    def __init__(
        self,
        backbone: Trainable,
        predictor: Predictor,
        settings: TrainSettings,
        dtype: torch.dtype,
        stream: str,
        hop: float | None,
    ) -> None:
        super().__init__()
        self.backbone = cast(Any, backbone)
        self.predictor = predictor
        self.stream, self._hop, self._dtype = stream, hop, dtype
        self._changes, self._modality_dropout = AugmentSettings(**settings.augment), settings.modality_dropout

    def frames(self, clips: Sequence[Any], samples: Sequence[int] = (), below: int = 0) -> tuple[Tensor, Tensor]:
        """Return what the head reads of the backbone.

        Args:
            clips: what the backbone takes: (samples,) float32 each, 16 kHz, not normalised, or crops of faces; or
                outputs of the backbone's lowest stages.
            samples: for such outputs, the number of samples of each clip.
            below: for such outputs, the number of these stages.

        Returns:
            (batch, frames, dim) float32 zero-padded to one frame at least, time-major in memory as in the cached mode;
            (batch,) lengths.
        """
        features = self.backbone.above(clips, samples, below) if below else self.backbone(clips)
        rows = features.frames if features.vad is None else torch.cat([features.frames, features.vad], dim=1)
        lengths = torch.tensor(features.lengths, device=rows.device)
        padded = nn.utils.rnn.pad_sequence(list(rows.float().split(list(features.lengths))))  # (frames, batch, dim)
        if not len(padded):
            padded = padded.new_zeros(1, *padded.shape[1:])
        return padded.transpose(0, 1), lengths

    def forward(
        self,
        clips: Sequence[Any],
        samples: Sequence[int] = (),
        below: int = 0,
        cached: Mapping[str, Rows] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """(…, columns) float32, what the loss sees, per clip or label row.

        In training with a generator the frames are augmented.

        Args:
            clips: see `frames`.
            samples: see `frames`.
            below: see `frames`.
            cached: rows of the other streams; those of the backbone's stream with empty frames, where they are known.
            generator: where the chance of augmentation comes from.
        """
        streams = self._streams(clips, samples, below, cached)
        if generator is not None:
            frames = streams[self.stream].frames
            batch = Batch(streams, frames.new_zeros(len(frames), 0))
            streams = augment_batch(batch, self._changes, generator, self._modality_dropout).streams
        with self._autocast(streams):
            return self.predictor.training_outputs(streams)

    def predict(
        self,
        clips: Sequence[Any],
        samples: Sequence[int] = (),
        below: int = 0,
        cached: Mapping[str, Rows] | None = None,
    ) -> Tensor:
        """(batch, targets) or (batch, label rows, targets) float32 intensities, not clipped to [0, 1]."""
        streams = self._streams(clips, samples, below, cached)
        with self._autocast(streams):
            return self.predictor(streams)

    def _streams(
        self, clips: Sequence[Any], samples: Sequence[int], below: int, cached: Mapping[str, Rows] | None
    ) -> Mapping[str, Rows]:
        frames, lengths = self.frames(clips, samples, below)
        known = (cached or {}).get(self.stream, Rows(frames, lengths, hop=self._hop))
        rows = {**(cached or {}), self.stream: replace(known, frames=frames, lengths=lengths)}
        return dict(sorted(rows.items()))

    def _autocast(self, streams: Mapping[str, Rows]) -> torch.autocast:
        device = streams[self.stream].frames.device.type
        return torch.autocast(device, self._dtype, enabled=self._dtype != torch.float32)
