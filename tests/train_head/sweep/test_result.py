"""What a sweep states about its trials, and from how many."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from scipy.stats import spearmanr

from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import evaluate
from train_head.protocols.result import ProtocolResult, Scored
from train_head.sweep.report import importances
from train_head.sweep.result import Retrained, SweepResult

NAMES = ("Joy", "Calm")


def retrained(number: int) -> Retrained:
    """A trial with two seeds on 12 clips of four groups."""
    rng = np.random.default_rng(number)
    target = rng.uniform(size=(12, 2))
    seeds = [target + rng.normal(size=target.shape) for _ in range(2)]
    mean = np.mean(seeds, 0)
    valid = Scored(
        members=tuple(evaluate(seed, target, NAMES) for seed in seeds),
        report=evaluate(mean, target, NAMES),
        intervals=bootstrap(mean, target, NAMES, ["a", "b", "c", "d"] * 3, resamples=50),
    )
    result = ProtocolResult(
        folder=Path(),
        kind="seeds",
        members=("seed-0", "seed-1"),
        best_epochs=(1, 1),
        valid=valid,
        test=None,
        notes=(),
        skipped=0,
        epochs_trained=0,
        nothing_to_do=True,
    )
    return Retrained(number=number, values={"lr": 0.1}, trial_pearson=float(rng.uniform()), result=result)


def sweep_of(number: int) -> SweepResult:
    status = SimpleNamespace(finished=9, complete=9, pruned=0, failed=0, best=0.5, best_number=1)
    return SweepResult(
        folder=Path(), status=status, best={}, retrained=tuple(map(retrained, range(number))), nothing_to_do=False
    )


def test_a_rank_correlation_is_stated_of_five_trials_or_more():
    assert sweep_of(4).agreement is None
    five = sweep_of(5)
    again = [one.result.valid.mean for one in five.retrained]
    wanted = spearmanr([one.trial_pearson for one in five.retrained], again).statistic
    assert five.agreement == pytest.approx(wanted)
    assert f"of the 5 as trials and retrained: {wanted:.2f}" in five.table()


def test_few_groups_are_warned_of_under_the_best():
    assert "warning: only 4 groups: the bootstrap intervals of fewer than 10 are too narrow" in sweep_of(1).table()


def test_importance_is_told_from_twenty_trials_on():
    lr = FloatDistribution(0.0, 1.0)
    trials = [create_trial(params={"lr": i / 20}, distributions={"lr": lr}, value=i / 20) for i in range(20)]
    assert importances(trials[:19]) == {}
    assert importances(trials) == {"lr": pytest.approx(1.0)}
