"""Give trials to worker processes, hear from them after each epoch, and stop those that lag behind.

Only this process accesses the study: it asks for each trial, reports its epochs and records how it ended. The workers
only train. So trials are counted exactly, a worker that dies loses one trial, and the same seed draws the same trials
whether or not the sweep was interrupted: a draw depends on the trial's number and on the finished trials.
"""

import contextlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import wait

import numpy as np
import optuna
from optuna import Study
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from cache.system.machine import available_cores
from train_head.errors import TrainSettingsError
from train_head.sweep.settings import SweepSettings
from train_head.sweep.space import Space
from train_head.sweep.storage import OUTCOME, JournalStudy, SharedStudy, counted, retry
from train_head.sweep.worker import Epoch, Finished, OpenSplits, Task, Worker

STARTUP = 10
"""Random trials before TPE learns from them."""
FACTOR = 3
"""One of this many trials continues from each rung."""
TICK = 0.5
"""Seconds between two checks for dead workers, which also update the time left."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a sweep is.

    Attributes:
        total: requested trials.
        complete: trained for all their epochs.
        pruned: stopped early.
        failed: ended with an error, or killed their worker too often.
        running: on any machine.
        best: highest validation score of a complete trial; None before the first.
        best_number: of that trial.
        per_minute: trials that this process finished per minute; 0 before the first.
        seconds_left: until all are finished, at the rate of all machines since this process looks; None is unknown.
        last: the trial that has just ended, or None.
    """

    total: int
    complete: int
    pruned: int
    failed: int
    running: int
    best: float | None
    best_number: int | None
    per_minute: float
    seconds_left: float | None
    last: FrozenTrial | None = None

    @property
    def finished(self) -> int:
        """Trials that have ended."""
        return self.complete + self.pruned + self.failed


OnStatus = Callable[[Status], None]


class Trials:
    """The trials of one process.

    Args:
        store: the study.
        space: what is tried.
        open_data: opens the splits that are trained on.
        settings: of the sweep.
        on_status: called after each finished trial, and every half second.
    """

    def __init__(
        self,
        store: JournalStudy | SharedStudy,
        space: Space,
        open_data: OpenSplits,
        settings: SweepSettings,
        on_status: OnStatus | None = None,
    ) -> None:
        self._store, self._study, self._space, self._open_data = store, store.study, space, open_data
        self._settings, self._jobs = settings, settings.jobs or available_cores()
        self._threads = max(1, available_cores() // self._jobs)
        longest = max(space.settings({"epochs": n} if n else {}).epochs for n in space.values("epochs") or (0,))
        self._study.pruner = build_pruner(settings.pruner, longest)
        self._on_status = on_status or (lambda _: None)
        self._cut_off = list(store.cut_off)
        self._workers: list[Worker] = []
        self._started, self._ended_here = time.monotonic(), 0
        self._ended_before = sum(t.state.is_finished() for t in counted(self._study))

    def run(self) -> None:
        """Train until the requested number of trials has ended."""
        try:
            while True:
                open_trials = self._hand_out()
                busy = [worker for worker in self._workers if worker.trial is not None]
                if not busy and not open_trials:
                    return
                if not busy:
                    time.sleep(TICK)  # other machines train the last ones; one that dies leaves its trial to us
                for pipe in wait([worker.pipe for worker in busy], TICK):
                    self._hear(next(worker for worker in busy if worker.pipe is pipe))
                self._store.alive([w.trial._trial_id for w in self._workers if w.trial is not None])
                self._on_status(self.status())
        finally:
            for worker in self._workers:
                worker.stop()

    def status(self, last: FrozenTrial | None = None) -> Status:
        """Return how far the sweep is."""
        trials = counted(self._study)
        of = {state: [t for t in trials if t.state == state] for state in TrialState}
        best = max(of[TrialState.COMPLETE], key=lambda t: t.value or 0.0, default=None)
        finished = sum(t.state.is_finished() for t in trials)
        elapsed, rate = time.monotonic() - self._started, finished - self._ended_before
        return Status(
            total=self._settings.trials,
            complete=len(of[TrialState.COMPLETE]),
            pruned=len(of[TrialState.PRUNED]),
            failed=len(of[TrialState.FAIL]),
            running=len(of[TrialState.RUNNING]),
            best=best.value if best else None,
            best_number=best.number if best else None,
            per_minute=60 * self._ended_here / elapsed,
            seconds_left=elapsed / rate * max(0, self._settings.trials - finished) if rate else None,
            last=last,
        )

    def _hand_out(self) -> bool:
        """Give each idle worker a trial; return whether any trial of the study is still open."""
        while sum(worker.trial is not None for worker in self._workers) < self._jobs:
            trial = self._ask()
            if trial is None:
                break
            try:
                settings = self._space.settings(trial.params, seed=self._settings.seed).on_this_machine()
                task = Task(settings, self._space.subset(trial.params))
            except TrainSettingsError as error:
                self._end(trial, TrialState.FAIL, Finished(0, 0, None, 0.0, str(error)))
            else:
                self._start(trial, task)
        trials = counted(self._study)
        return len(trials) < self._settings.trials or any(not trial.state.is_finished() for trial in trials)

    def _start(self, trial: Trial, task: Task) -> None:
        """Send a trial to an idle worker, or to a new one where none is idle or the idle one is dead."""
        while True:
            worker = next((worker for worker in self._workers if worker.trial is None), None)
            if worker is None:
                worker = Worker.start(self._open_data, self._threads)
                self._workers.append(worker)
            try:
                return worker.train(trial, task)
            except OSError:
                worker.check_start()
                self._dismiss(worker)

    def _ask(self) -> Trial | None:
        """Start the next trial and return it; None if there is none to start."""
        with self._store.asking():
            if self._cut_off:
                trial = Trial(self._study, self._cut_off.pop(0)._trial_id)
            else:
                trials = counted(self._study)
                if not any(trial.state == TrialState.WAITING for trial in trials):
                    if len(trials) >= self._settings.trials:
                        return None
                    self._draw()
                trial = self._study.ask()
            self._store.begin(trial._trial_id)
            return trial

    def _draw(self) -> None:
        """Add a new trial that waits, with all its settings.

        It is drawn in a copy of the study and added whole, so that a killed process leaves no trial half drawn.
        """
        trials = self._study.get_trials(deepcopy=False)
        sampler = build_sampler(self._settings.sampler, self._settings.seed, len(trials))
        copy = optuna.create_study(sampler=sampler, direction="maximize")
        copy.add_trials([trial for trial in trials if trial.state != TrialState.WAITING])
        drawn = copy.ask()
        params = self._space.suggest(drawn)
        self._study.add_trial(create_trial(state=TrialState.WAITING, params=params, distributions=drawn.distributions))

    def _hear(self, worker: Worker) -> None:
        """Receive what a worker sent, and answer."""
        trial = worker.trial
        assert trial is not None
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._fail(worker, trial)
            return
        worker.ready = True
        if isinstance(message, Epoch):
            try:
                worker.pruned = self._report(worker, trial, message)
            except UpdateFinishedTrialError:  # no heartbeat for so long that another process marked the trial failed
                self._dismiss(worker)
                return
            with contextlib.suppress(OSError):  # a worker that died meanwhile is found next
                worker.pipe.send(not worker.pruned)
        elif isinstance(message, Finished):
            worker.trial = None
            if message.reason is None and message.best is None:
                reason = "no epoch had a defined correlation: constant predictions or labels, or too few of them"
                message = replace(message, best_epoch=0, reason=reason)
            state = TrialState.FAIL if message.reason else TrialState.PRUNED if worker.pruned else TrialState.COMPLETE
            with contextlib.suppress(UpdateFinishedTrialError):
                self._end(trial, state, message)

    def _report(self, worker: Worker, trial: Trial, epoch: Epoch) -> bool:
        """Report to the study; return whether the trial stops. Epochs before an interruption are not judged again."""
        if epoch.score is None or epoch.number < worker.reported:
            return False
        if epoch.number > worker.reported:
            trial.report(epoch.score, epoch.number)
        return trial.should_prune()

    def _end(self, trial: Trial, state: TrialState, outcome: Finished) -> None:
        record = {"epochs": outcome.epochs, "best_epoch": outcome.best_epoch, "seconds": round(outcome.seconds, 3)}
        best = {"best": outcome.best} if state == TrialState.PRUNED else {}
        reason = {"reason": outcome.reason} if outcome.reason else {}
        trial.set_user_attr(OUTCOME, record | best | reason)
        frozen = self._study.tell(trial, outcome.best if state == TrialState.COMPLETE else None, state)
        self._ended_here += 1
        self._on_status(self.status(frozen))

    def _fail(self, worker: Worker, trial: Trial) -> None:
        """Mark the trial of a dead worker failed, and let it run again unless that has happened too often.

        Raises:
            WorkerStartError: workers cannot start at all.
        """
        worker.check_start()
        trial.set_user_attr(OUTCOME, {"epochs": 0, "best_epoch": 0, "seconds": 0.0, "reason": worker.exit_text()})
        self._dismiss(worker)
        frozen = self._study.tell(trial, state=TrialState.FAIL)
        retry(self._study, frozen)
        self._on_status(self.status(frozen))

    def _dismiss(self, worker: Worker) -> None:
        self._workers.remove(worker)
        worker.stop()


def build_sampler(name: str, seed: int, number: int) -> BaseSampler:
    """Return the sampler that draws the trial of this number."""
    of_trial = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "random":
        return RandomSampler(seed=of_trial)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=of_trial, n_startup_trials=STARTUP, multivariate=True, group=True, constant_liar=True)


class SuccessiveHalving(BasePruner):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934), also in several brackets (Hyperband, 1603.06560).

    Optuna's stores each judgement before acting on it: a trial whose sweep is killed in between is never judged again,
    and is not pruned. Here the judgement is computed from the reported values alone, and is the same after a kill.

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
