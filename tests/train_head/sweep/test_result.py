"""What a sweep states about its trials, and from how many."""

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial
from scipy.stats import spearmanr

from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import evaluate
from train_head.protocols.result import ProtocolResult, Scored
from train_head.sweep.report import TEMPLATE, importances, write_report
from train_head.sweep.result import Retrained, SweepResult
from train_head.sweep.storage import OUTCOME

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
    return Retrained(number=number, values={"lr": 0.1}, trial_score=float(rng.uniform()), result=result)


def sweep_of(number: int) -> SweepResult:
    status = SimpleNamespace(finished=9, complete=9, pruned=0, failed=0, best=0.5, best_number=1)
    return SweepResult(
        folder=Path(),
        score_name="Pearson",
        status=status,
        best={},
        retrained=tuple(map(retrained, range(number))),
        nothing_to_do=False,
    )


def test_a_rank_correlation_is_stated_of_five_trials_or_more():
    assert sweep_of(4).agreement is None
    five = sweep_of(5)
    again = [one.result.valid.mean for one in five.retrained]
    wanted = spearmanr([one.trial_score for one in five.retrained], again).statistic
    assert five.agreement == pytest.approx(wanted)
    assert f"of the 5 as trials and retrained: {wanted:.2f}" in five.table()


def test_few_groups_are_warned_of_under_the_best():
    assert "warning: only 4 groups: the bootstrap intervals of fewer than 10 are too narrow" in sweep_of(1).table()


def test_importance_is_told_from_twenty_trials_on():
    lr = FloatDistribution(0.0, 1.0)
    trials = [create_trial(params={"lr": i / 20}, distributions={"lr": lr}, value=i / 20) for i in range(20)]
    assert importances(trials[:19]) == {}
    assert importances(trials) == {"lr": pytest.approx(1.0)}


def test_the_report_escapes_what_users_wrote_and_its_template_is_in_a_wheel(tmp_path):
    study = optuna.create_study(direction="maximize")
    choice = CategoricalDistribution(["<script>"])
    outcome = {OUTCOME: {"epochs": 3, "best_epoch": 1, "seconds": 1.5}}
    trial = create_trial(params={"loss": "<script>"}, distributions={"loss": choice}, value=0.25, user_attrs=outcome)
    study.add_trial(trial)
    write_report(replace(sweep_of(1), folder=tmp_path), study, {"sampler": "tpe", "pca": None}, 'loss = "<b>"')
    page = (tmp_path / "report.html").read_text()
    assert "<td>0</td><td>complete</td><td>0.250</td><td>3</td><td>1.5</td><td>loss=&lt;script&gt;</td>" in page
    assert "(sampler tpe)" in page
    assert "<script>" not in page
    assert "<b>" not in page
    pyproject = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert TEMPLATE in pyproject["tool"]["setuptools"]["package-data"]["train_head.sweep"]
