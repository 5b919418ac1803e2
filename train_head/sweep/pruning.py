"""Stop trials that lag behind, judged only by the values that trials reported.

Optuna's successive halving stores each judgement before acting on it: a trial whose sweep is killed in between is never
judged again, and is not pruned. Here the judgement is computed from the reported values, and is the same after a kill.
"""

from optuna import Study
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

FACTOR = 3
"""One of this many trials continues from each rung."""


class SuccessiveHalving(BasePruner):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), also in several brackets (Hyperband, 1603.06560).

    A trial is judged at each rung: after `least` epochs, and after three, nine, … times as many. It continues if it is
    in the best third of the trials of its bracket that have reached that rung; the first always continues.

    Args:
        least: epochs until the first rung.
        brackets: number of brackets, which trials join in turn; each skips one rung more than the one before.
    """

    def __init__(self, least: int, brackets: int = 1) -> None:
        self._least, self._brackets = least, brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the trial, which has just reported, stops here."""
        bracket, now = trial.number % self._brackets, max(trial.intermediate_values, default=0)
        step = self._least * FACTOR**bracket
        while step < now:
            step *= FACTOR
        if step != now:
            return False
        rivals = [
            other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if other.number != trial.number
            and other.number % self._brackets == bracket
            and step in other.intermediate_values
        ]
        return sum(value > trial.intermediate_values[step] for value in rivals) >= max(1, (len(rivals) + 1) // FACTOR)


def build_pruner(name: str, epochs: int) -> BasePruner:
    """Return a pruner for trials of this many epochs; it first judges a trial after a ninth of them."""
    least = -(-epochs // FACTOR**2)  # and then after a third of them, so that none is stopped just before its end
    match name:
        case "asha":
            return SuccessiveHalving(least)
        case "hyperband":
            return SuccessiveHalving(least, brackets=3)
        case "median":
            return MedianPruner(n_startup_trials=10, n_warmup_steps=least)  # keeps nothing but what was reported
    return NopPruner()
