"""What one run minimises: a weighted sum of losses, with weights for rare labels.

A weight follows from how often each intensity of a target occurs among the training clips.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train_head.errors import TrainSettingsError
from train_head.losses.expression import Term, keyword_options, parse_sum
from train_head.losses.registry import LOSSES

RAMP = "ramp"
"""Option of every loss: over how many epochs its coefficient grows."""
Cells = NDArray[np.float64]


@dataclass(frozen=True)
class Weighting:
    """A rule from counts to weights.

    Attributes:
        compute: `(counts, **options)`: (cells,) float64 training labels per cell of a target's range, at least one cell
            of them not 0, to (cells,) weights up to a factor; its keyword-only parameters are the options.
        cells: into how many the range from the smallest to the largest label is cut.
    """

    compute: Callable[..., Cells]
    cells: int


class Weights(nn.Module):
    """(batch, targets) labels to (batch, targets) float32 weights by table, mean 1 per target over the training clips.

    It has no parameters, and its tables are in no state dict: they are made again from the training labels.

    Args:
        rule: how counts become weights.
        options: all options of the rule.
        train_targets: (clips, targets) labels of the training split, NaN where one is missing.
    """

    low: Tensor
    per_unit: Tensor
    table: Tensor

    def __init__(self, rule: Weighting, options: dict[str, float], train_targets: Tensor) -> None:
        super().__init__()
        labels = train_targets.detach().float()
        missing = labels.isnan()
        low = labels.masked_fill(missing, torch.inf).amin(0)
        low = torch.where(missing.all(0), 0.0, low)
        span = torch.where(missing.all(0), 0.0, labels.masked_fill(missing, -torch.inf).amax(0) - low)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("per_unit", torch.where(span > 0, (rule.cells - 1) / span, 0.0), persistent=False)
        self.register_buffer("table", labels.new_ones(rule.cells, labels.shape[1]), persistent=False)
        cells, there = self._cells(labels).T.cpu().numpy(), ~missing.T.cpu().numpy()
        columns = [_table(rule, options, cells[k][there[k]]) for k in range(labels.shape[1])]
        self.table.copy_(torch.from_numpy(np.stack(columns, axis=1)))

    def forward(self, targets: Tensor) -> Tensor:
        """Look weights up; labels outside the range of the training labels have those of its ends.

        A missing label has that of the lowest, which nothing uses.
        """
        return self.table.gather(0, self._cells(targets))

    def _cells(self, targets: Tensor) -> Tensor:
        """Nearest cell, so that labels given in equal steps do not fall on the border of two."""
        targets = torch.where(targets.isnan(), self.low, targets)
        return ((targets - self.low) * self.per_unit).round().clamp(0, len(self.table) - 1).long()


class Objective(nn.Module):
    """(batch, columns) outputs of a head and (batch, targets) labels to a scalar.

    It has no parameters and nothing of it is in a state dict; `to` takes the weighting's tables to a device.

    Args:
        terms: the sum.
        weights: of the labels; None counts all alike.
        auxiliary: weight of the same sum over the outputs of each stream's own regressor, which is added.

    Attributes:
        outputs: columns that a head must give per target: the most that any term asks for.
        epoch: counted from 1, for terms with a ramp; set it before each epoch.
    """

    def __init__(self, terms: Sequence[Term], weights: Weights | None = None, auxiliary: float = 0.0) -> None:
        super().__init__()
        self.terms = tuple(terms)
        self.weights = weights
        self.auxiliary = auxiliary
        self.epoch = 1
        self.outputs = max(LOSSES[term.name].outputs for term in self.terms)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the sum; a loss that takes fewer columns than the head gives sees the decoded predictions.

        Args:
            outputs: (batch, targets * outputs) of any float dtype; with `auxiliary`, perhaps as many columns again per
                stream, NaN in rows that do not count for it.
            targets: (batch, targets), NaN where a label is missing; a batch without any label costs 0.

        Returns:
            Scalar, at least float32.

        Raises:
            ValueError: the shapes do not go together.
        """
        if not self.auxiliary:
            return self._sum(outputs, targets)
        together, *alone = outputs.split(targets.shape[-1] * self.outputs, dim=-1)
        total = self._sum(together, targets)
        for part in alone:
            counted = targets.masked_fill(part.isnan().any(dim=-1, keepdim=True), torch.nan)
            total = total + self.auxiliary * self._sum(part, counted)
        return total

    def _sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        missing = targets.isnan()
        if missing.any():  # before anything is computed of them, so that no gradient is 0 times infinity
            outputs = outputs.masked_fill(missing.repeat(1, self.outputs), 0.0)
        weight = None if self.weights is None else self.weights(targets)
        predicted = decode(outputs, outputs.shape[-1] // self.outputs)
        total = outputs.new_zeros(())
        for term in self.terms:
            loss = LOSSES[term.name]
            seen = outputs if loss.outputs == self.outputs else predicted
            share = min(1.0, self.epoch / term.ramp) if term.ramp else 1.0
            total = total + share * term.coefficient * loss(seen, targets, weight, **term.options)
        return total

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms))


def parse(expression: str) -> list[Term]:
    """Read a loss expression such as "0.7*ccc + 0.3*mse", "huber(delta=0.2)" or "mse + 0.1*pearson(ramp=8)".

    Raises:
        TrainSettingsError: an unknown loss or option (with the nearest known one), a coefficient or an option that is
            not above 0, or anything that is no such sum.
    """
    terms = parse_sum(expression, "loss", {name: {**loss.options, RAMP: 0} for name, loss in LOSSES.items()})
    return [
        replace(term, options={k: v for k, v in term.options.items() if k != RAMP}, ramp=int(term.options[RAMP]))
        for term in terms
    ]


def canonical(expression: str) -> str:
    """Return the one spelling of a loss expression, with all options: "huber" is "huber(delta=1)".

    Raises:
        TrainSettingsError: as `parse`.
    """
    return " + ".join(map(str, parse(expression)))


def outputs_per_target(expression: str) -> int:
    """Return the number of columns that a head must give per target.

    Raises:
        TrainSettingsError: as `parse`.
    """
    return Objective(parse(expression)).outputs


def decode(outputs: Tensor, targets: int) -> Tensor:
    """Compute what the outputs of a head predict.

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


def build_objective(expression: str, weighting: str, train_targets: Tensor, auxiliary: float = 0.0) -> Objective:
    """Make the objective of a run.

    Args:
        expression: sum of losses, see `parse`.
        weighting: a name in `WEIGHTINGS`, perhaps with options: "none", "lds", "dense(alpha=0.5)".
        train_targets: (clips, targets) labels of the training split, from which the weights are computed; NaN where
            one is missing.
        auxiliary: see `Objective`.

    Raises:
        TrainSettingsError: either cannot be read.
    """
    return Objective(parse(expression), build_weights(weighting, train_targets), auxiliary)


def compares_clips(expression: str) -> list[str]:
    """Return the losses of a sum that compare the clips of a batch."""
    return [term.name for term in parse(expression) if LOSSES[term.name].compares]


def is_mean_over_clips(expression: str, weighting: str) -> bool:
    """Return whether the objective of a batch is the mean over its labels; weights are relative to the whole batch."""
    return weighting == "none" and all(LOSSES[term.name].by_clip for term in parse(expression))


def uniform(counts: Cells) -> Cells:
    """Weigh all labels alike."""
    return np.ones_like(counts)


def lds(counts: Cells, *, sigma: float = 2.0, power: float = 0.5) -> Cells:
    """Label distribution smoothing: one over the smoothed counts (Yang et al., ICML 2021, section 3.1).

    As the authors' code does, the power is taken before smoothing and the kernel finds nothing beyond the ends. Cells
    without training labels, where mixed labels may fall, weigh no more than the rarest that has some.

    Args:
        counts: (cells,) labels per cell.
        sigma: spread of the Gaussian kernel in cells, of which 101 cover a target's range.
        power: 0.5 is their square-root-inverse weighting, 1 their inverse one.
    """
    from scipy.ndimage import gaussian_filter1d  # here, since importing it costs what a short run does not have

    smooth = gaussian_filter1d(counts**power, sigma, mode="constant")
    weights: Cells = 1.0 / np.maximum(smooth, smooth[counts > 0].min())
    return weights


def dense(counts: Cells, *, alpha: float = 1.0) -> Cells:
    """DenseWeight: one minus alpha times the labels' density (Steininger et al., Machine Learning 110, 2021).

    The density is a kernel estimate with Silverman's bandwidth, here over 1001 cells (binned, so a million labels cost
    what a hundred do), scaled to reach from 0 to 1 over the training labels.

    Args:
        counts: (cells,) labels per cell.
        alpha: 0 would weigh all alike; at 1 the commonest label weighs next to nothing; above 1 more labels do.
    """
    from scipy.ndimage import gaussian_filter1d  # as above

    total, at = counts.sum(), np.arange(len(counts))
    if np.count_nonzero(counts) == 1:
        return np.ones_like(counts)
    variance = counts @ (at - counts @ at / total) ** 2 / (total - 1)
    density = gaussian_filter1d(counts, np.sqrt(variance) * (0.75 * total) ** -0.2, mode="constant")
    low, high = density[counts > 0].min(), density[counts > 0].max()
    relative = np.clip((density - low) / max(high - low, 1e-12 * high), 0.0, 1.0)
    weights: Cells = np.maximum(1.0 - alpha * relative, 1e-6)  # the paper's epsilon
    return weights


WEIGHTINGS: dict[str, Weighting] = {
    "none": Weighting(uniform, cells=1),
    "lds": Weighting(lds, cells=101),
    "dense": Weighting(dense, cells=1001),
}


def canonical_weighting(text: str) -> str:
    """Return the one spelling of a weighting, with all its options: "lds" is "lds(sigma=2, power=0.5)".

    Raises:
        TrainSettingsError: an unknown weighting or option (with the nearest known one), or a value out of range.
    """
    return str(_weighting(text))


def build_weights(text: str, train_targets: Tensor) -> Weights | None:
    """Make the tables of a weighting from (clips, targets) training labels; None where all labels count alike.

    Raises:
        TrainSettingsError: as `canonical_weighting`.
    """
    term = _weighting(text)
    return None if term.name == "none" else Weights(WEIGHTINGS[term.name], dict(term.options), train_targets)


def _weighting(text: str) -> Term:
    known = {name: keyword_options(rule.compute) for name, rule in WEIGHTINGS.items()}
    terms = parse_sum(text, "weighting", known)
    if len(terms) != 1 or terms[0].coefficient != 1:
        raise TrainSettingsError(f"weighting {text!r} must be one of {', '.join(known)}, and cannot be a sum")
    return terms[0]


def _table(rule: Weighting, options: dict[str, float], cells: NDArray[np.int64]) -> Cells:
    """Return the weights of a target by cell, mean 1 over the training clips; 1 where none of these has a label."""
    counts = np.bincount(cells, minlength=rule.cells).astype(np.float64)
    if not len(cells):
        return np.ones(rule.cells)
    weights = rule.compute(counts, **options)
    weights *= counts.sum() / (counts @ weights)
    return weights
