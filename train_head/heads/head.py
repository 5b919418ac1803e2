"""A head: an encoder, and a regressor on its summary or on its states."""

from typing import Any, ClassVar

from torch import Tensor, nn

from train_head.heads.encoder import Encoder
from train_head.heads.pooling import masked, row_mask, time_mean
from train_head.heads.regressor import two_layers

SUMMARY, MEAN_OF_ROWS = "summary", "mean-of-rows"
"""What the regressor reads: a clip's summary; or each state, whose values are averaged over the clip."""


class Head(nn.Module):
    """One stream in, one value per target and clip out.

    Args:
        dim: size of a row.
        targets: values that are predicted.
        options: an instance of `Options`.
    """

    Options: ClassVar[Any]
    Encoder: ClassVar[type[Encoder]]
    readout: str = SUMMARY

    def __init__(self, dim: int, targets: int, options: Any) -> None:
        super().__init__()
        self.encoder: Encoder = self.Encoder(dim, options)
        width = self.encoder.summary_width if self.readout == SUMMARY else self.encoder.state_width
        self.encoder.wants_states = self.readout != SUMMARY
        self.regressor = self.make_regressor(width, targets, options)
        self.register_load_state_dict_pre_hook(_rename_old)

    @staticmethod
    def make_regressor(width: int, targets: int, options: Any) -> nn.Module:
        """Make the layers behind the encoder; heads override it.

        Args:
            width: size of a summary, or of a state.
            targets: values that are predicted.
            options: of the head.
        """
        return two_layers(width, width, targets, options.dropout, options.output)

    def forward(self, frames: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Tensor:
        """(batch, rows, dim), (batch,) and perhaps (batch, rows) → (batch, targets); see `Encoder`."""
        if self.readout == SUMMARY:
            out: Tensor = self.regressor(self.encoder(frames, lengths, valid).summary)
            return out
        return time_mean(self.per_frame(frames, lengths, valid), row_mask(frames, lengths, valid))

    def per_frame(self, frames: Tensor, lengths: Tensor, valid: Tensor | None = None) -> Tensor:
        """(batch, rows, dim) and (batch,) → (batch, rows, targets), zeros behind each clip's end."""
        states = self.encoder(frames, lengths, valid).states
        assert states is not None
        values: Tensor = self.regressor(states)  # (batch, steps, targets)
        if self.encoder.stride > 1:
            values = values.repeat_interleave(self.encoder.stride, dim=1)[:, : frames.shape[1]]
        return masked(values, row_mask(frames, lengths))


def _rename_old(_module: nn.Module, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    """Give weights of before there were encoders the names that they have now."""
    names = [name for name in state if name.startswith(prefix)]
    if all(name.removeprefix(prefix).startswith(("encoder.", "regressor.")) for name in names):
        return
    for name in names:
        old = name.removeprefix(prefix)
        if old.startswith("linear."):  # of heads with one layer behind the encoder
            state[f"{prefix}regressor.1.{old.removeprefix('linear.')}"] = state.pop(name)
        elif not old.startswith("regressor."):
            state[f"{prefix}encoder.{old}"] = state.pop(name)
