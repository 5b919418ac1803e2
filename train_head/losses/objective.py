"""What one run minimises: a weighted sum of losses, with weights for rare labels."""

from collections.abc import Sequence

from torch import Tensor, nn

from train_head.losses.expression import Term, parse_sum
from train_head.losses.registry import LOSSES
from train_head.losses.weighting import Weights, build_weights


class Objective(nn.Module):
    """(batch, columns) outputs of a head and (batch, targets) labels to a scalar.

    It has no parameters and nothing of it is in a state dict; `to` takes the weighting's tables to a device.

    Args:
        terms: the sum.
        weights: of the labels; None counts all alike.

    Attributes:
        outputs: columns that a head must give per target: the most that any term asks for.
    """

    def __init__(self, terms: Sequence[Term], weights: Weights | None = None) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.weights = weights
        self.outputs = max(LOSSES[term.name].outputs for term in self.terms)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum; a loss that takes fewer columns than the head gives sees the decoded predictions.

        Args:
            outputs: (batch, targets * outputs) of any float dtype.
            targets: (batch, targets), NaN where a label is missing; a batch without any label costs 0.

        Returns:
            Scalar, at least float32.

        Raises:
            ValueError: the shapes do not go together.
        """
        missing = targets.isnan()
        if missing.any():  # before anything is computed of them, so that no gradient is 0 times infinity
            outputs = outputs.masked_fill(missing.repeat(1, self.outputs), 0.0)
        weight = None if self.weights is None else self.weights(targets)
        predicted = decode(outputs, outputs.shape[-1] // self.outputs)
        total = outputs.new_zeros(())
        for term in self.terms:
            loss = LOSSES[term.name]
            seen = outputs if loss.outputs == self.outputs else predicted
            total = total + term.coefficient * loss(seen, targets, weight, **term.options)
        return total

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse(expression: str) -> list[Term]:
    """Read a loss expression such as "0.7*ccc + 0.3*mse" or "huber(delta=0.2)".

    Raises:
        TrainSettingsError: an unknown loss or option (with the nearest known one), a coefficient or an option that is
            not above 0, or anything that is no such sum.
    """
    return parse_sum(expression, "loss", {name: loss.options for name, loss in LOSSES.items()})


def canonical(expression: str) -> str:
    """The one spelling of a loss expression, with all options: "huber" is "huber(delta=1)".

    Raises:
        TrainSettingsError: as `parse`.
    """
    return " + ".join(map(str, parse(expression)))


def outputs_per_target(expression: str) -> int:
    """Columns that a head must give per target.

    Raises:
        TrainSettingsError: as `parse`.
    """
    return Objective(parse(expression)).outputs


def decode(outputs: Tensor, targets: int) -> Tensor:
    """What the outputs of a head predict.

    Args:
        outputs: (..., targets) predictions, given back as they are; or (..., 2 * targets), the logits that a label is
            above 0 and then the amounts, as `zero_inflated` trains them.
        targets: number of targets.

    Returns:
        (..., targets); of two columns per target, the expected intensity: probability times amount.

    Raises:
        ValueError: the width is neither.
    """
    width = outputs.shape[-1]
    if width == targets:
        return outputs
    if width != 2 * targets:
        raise ValueError(f"{width} columns are neither one nor two for each of {targets} targets")
    return outputs[..., :targets].sigmoid() * outputs[..., targets:]


def build_objective(expression: str, weighting: str, train_targets: Tensor) -> Objective:
    """Make the objective of a run.

    Args:
        expression: sum of losses, see `parse`.
        weighting: a name in `WEIGHTINGS`, perhaps with options: "none", "lds", "dense(alpha=0.5)".
        train_targets: (clips, targets) labels of the training split, from which the weights are computed; NaN where
            one is missing.

    Raises:
        TrainSettingsError: either cannot be read.
    """
    return Objective(parse(expression), build_weights(weighting, train_targets))


def compares_clips(expression: str) -> list[str]:
    """The losses of a sum that compare the clips of a batch."""
    return [term.name for term in parse(expression) if LOSSES[term.name].compares]


def is_mean_over_clips(expression: str, weighting: str) -> bool:
    """Whether the objective of a batch is the mean over its labels; weights are relative to the whole batch."""
    return weighting == "none" and all(LOSSES[term.name].by_clip for term in parse(expression))
