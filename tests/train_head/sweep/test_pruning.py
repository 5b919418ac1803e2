"""Successive halving: against the rule in words, and the same after any interruption."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from train_head.errors import TrainSettingsError
from train_head.sweep.settings import SweepSettings
from train_head.sweep.trials import SuccessiveHalving, build_pruner


def study_of(*histories: dict[int, float]) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials([create_trial(state=TrialState.RUNNING, intermediate_values=history) for history in histories])
    return study


def prunes(pruner: SuccessiveHalving, *histories: dict[int, float]) -> bool:
    """Whether the last trial is pruned."""
    study = study_of(*histories)
    return pruner.prune(study, study.get_trials()[-1])


def test_the_best_third_goes_on_from_each_rung_and_the_first_always_does():
    asha = SuccessiveHalving(2)
    assert not prunes(asha, {2: -0.5})
    assert prunes(asha, {2: 0.5}, {2: 0.4})
    assert not prunes(asha, {2: 0.5}, {2: 0.6})
    rivals = [{2: value / 10} for value in range(5)]  # of six, two go on
    assert not prunes(asha, *rivals, {2: 0.35})
    assert prunes(asha, *rivals, {2: 0.25})


@pytest.mark.parametrize(("epoch", "judged"), [(1, False), (2, True), (3, False), (5, False), (6, True), (18, True)])
def test_a_trial_is_judged_at_rungs_only(epoch, judged):
    rival = dict.fromkeys(range(1, 20), 0.9)
    assert prunes(SuccessiveHalving(2), rival, dict.fromkeys(range(1, epoch + 1), 0.1)) == judged


def test_rivals_are_those_that_came_to_the_same_rung():
    short, long = {1: 0.9, 2: 0.9}, dict.fromkeys(range(1, 7), 0.2)
    assert not prunes(SuccessiveHalving(2), short, long, dict.fromkeys(range(1, 7), 0.3))


def test_brackets_judge_their_own_trials_and_later():
    hyperband = SuccessiveHalving(1, brackets=2)
    assert not prunes(hyperband, {1: 0.9}, {1: 0.1})  # the second bracket has no rung after one epoch
    assert not prunes(hyperband, {1: 0.9, 3: 0.9}, {1: 0.1, 3: 0.1})  # and no other trial after three
    assert prunes(hyperband, {1: 0.0}, {3: 0.9}, {1: 0.0}, {1: 0.1, 3: 0.1})


@pytest.mark.parametrize(("epochs", "first"), [(1, 1), (4, 1), (9, 1), (20, 3), (30, 4)])
def test_the_first_rung_is_a_ninth_of_the_epochs(epochs, first):
    pruner = build_pruner("asha", epochs)
    rival = dict.fromkeys(range(1, epochs + 1), 0.9)
    assert [e for e in range(1, first + 1) if prunes(pruner, rival, dict.fromkeys(range(1, e + 1), 0.1))] == [first]


def test_an_unknown_pruner_is_named():
    with pytest.raises(TrainSettingsError, match="did you mean 'asha'"):
        SweepSettings(pruner="ashaa")
