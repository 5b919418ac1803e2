"""The module that is trained, saved and used: standardisation, a head, and what its outputs mean."""

from collections.abc import Iterable

from torch import Tensor, nn

from train_head.data.label_format import UNIT
from train_head.heads import build_head
from train_head.heads.pooling import masked
from train_head.losses import decode, outputs_per_target
from train_head.training.settings import TrainSettings
from train_head.training.standardise import Standardise


class Predictor(nn.Module):
    """(batch, frames, dim) features → standardised → head → (batch, targets) intensities.

    What the loss sees lies on the scale of 0 to 1; intensities lie on that of the labels (`label_range`).

    The cached and the end-to-end mode train this one module; its state dict is `best.safetensors`.

    Args:
        settings: which head, with which options, for which loss.
        dim: features per frame, VAD included.
        targets: columns of the labels.
    """

    def __init__(self, settings: TrainSettings, dim: int, targets: int) -> None:
        super().__init__()
        self.targets = targets
        self._range = settings.label_range
        self.standardise: nn.Module = Standardise(dim) if settings.standardise else nn.Identity()
        outputs = targets * outputs_per_target(settings.loss)
        self.head = build_head(settings.head, dict(settings.head_options), dim, outputs)

    def outputs(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, targets * columns per target) float32: what the loss sees."""
        raw: Tensor = self.head(self.standardise(frames), lengths)
        return raw.float()

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, targets) float32 intensities, not clipped to the labels' range."""
        return self._on_labels_scale(decode(self.outputs(frames, lengths), self.targets))

    @property
    def has_timeline(self) -> bool:
        """Whether the head gives a value per frame."""
        return hasattr(self.head, "per_frame")

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, targets) intensities per frame, of a head that has them; zeros behind a clip's end."""
        values: Tensor = self.head.per_frame(self.standardise(frames), lengths)  # type: ignore[operator]
        intensities = self._on_labels_scale(decode(values.float(), self.targets))
        return intensities if self._range == UNIT else masked(intensities, lengths)

    def _on_labels_scale(self, values: Tensor) -> Tensor:
        if self._range == UNIT:
            return values
        low, high = self._range
        return low + (high - low) * values

    def fit_inputs(self, chunks: Iterable[Tensor]) -> None:
        """Take mean and spread of each feature from the training split's frames, (rows, dim) at a time."""
        if isinstance(self.standardise, Standardise):
            self.standardise.fit(chunks)
