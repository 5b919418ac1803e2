"""Stop trials that lag behind, judged by nothing but what the trials reported.

Optuna's own successive halving writes down each judgement before it is acted upon, so that a trial whose sweep is
killed in between is never judged again, and escapes. Here the judgement is made of the reported values alone: after a
kill it comes out the same.
"""

from optuna import Study
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial

FACTOR = 3
"""One trial of so many goes on from each rung."""


class SuccessiveHalving(BasePruner):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), also in several brackets (Hyperband, 1603.06560).

    A trial is judged where it comes to a rung: after `least` epochs, and after three, nine, … times as many. It goes on
    where it is among the best third of the trials of its bracket that came to that rung so far; the first always does.

    Args:
        least: epochs until the first rung.
        brackets: trials take turns in so many; each next one leaves out one rung more.
    """

    def __init__(self, least: int, brackets: int = 1) -> None:
        self._least, self._brackets = least, brackets

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial, which has just reported, stops here."""
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
        better = sum(value > trial.intermediate_values[step] for value in rivals)
        return better >= max(1, (len(rivals) + 1) // FACTOR)


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
