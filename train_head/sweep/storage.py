"""Where a study is stored: a journal file in the run folder, or a PostgreSQL that several machines share.

A journal belongs to one `emi sweep` at a time. It holds a lock that the kernel drops when the process dies, so a trial
that is still called running when the lock is taken was interrupted; it runs again under its number. On PostgreSQL every
worker records a heartbeat for its trials. A trial without heartbeat is marked failed, and a copy of it waits for the
next worker.
"""

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import filelock
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from cache.system.locks import HeldError, Lock
from train_head.errors import RunFolderError, TrainSettingsError

JOURNAL, LOCK = "study.journal", "sweep.lock"
RETRIES = 3
"""Times that a trial whose worker died is run again; after that it stays failed."""
OUTCOME = "outcome"
"""User attribute of a finished trial: epochs, best_epoch, best, seconds, and the reason where it failed."""
HISTORY = "retry_history"
"""System attribute of a retried trial: the numbers under which it ran before, by Optuna's name."""
_ASKING = 0x656D69
"""Number of PostgreSQL's advisory lock under which the next trial is asked for."""


class JournalStudy:
    """A study in a file of the run folder, of this process only.

    Args:
        folder: run folder.
        name: of the study.

    Attributes:
        cut_off: trials that ran when the last process died; each runs again under its number.

    Raises:
        RunFolderError: another sweep runs in this folder, or the journal is damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()
        self._lock = Lock(folder / LOCK)
        try:
            self._lock.take()
        except HeldError as held:
            raise RunFolderError(
                f"another sweep runs in {folder}{held}; wait for it, or give --storage postgresql://… to work together"
            ) from None
        path = folder / JOURNAL
        # the system drops this lock when its process dies; Optuna's own would be waited for
        lock = cast(Any, filelock.FileLock(folder / f"{JOURNAL}.lock"))
        if path.is_file():  # a killed process leaves a last line without its end
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        try:
            self.study = _study(JournalStorage(JournalFileBackend(str(path), lock)), name)
        except (ValueError, KeyError) as error:
            raise RunFolderError(
                f"{path} is damaged ({error}); its trials are lost: remove that file, and the same command starts anew"
            ) from error
        self.cut_off = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    asking = nullcontext  # nobody else asks

    def begin(self, trial_id: int) -> None:
        """Nobody else looks."""

    def alive(self, trial_ids: Sequence[int]) -> None:
        """Nobody else looks."""

    def close(self) -> None:
        """Release the folder."""
        self._lock.release()


class SharedStudy:
    """A study in PostgreSQL that any number of workers take their trials from.

    Args:
        url: `postgresql://USER:PASSWORD@HOST/DATABASE`.
        name: of the study, made by the first worker.
        heartbeat: seconds between two heartbeats; after six times as many a worker counts as dead.

    Attributes:
        cut_off: empty; trials of dead workers are marked failed, and copies of them wait.

    Raises:
        TrainSettingsError: another kind of URL, no driver, or nobody answers.
    """

    def __init__(self, url: str, name: str, heartbeat: int = 10) -> None:
        import sqlalchemy as sa

        self._heartbeat, self._beat = heartbeat, 0.0
        self._seen: set[int] = set()
        self.cut_off: list[FrozenTrial] = []
        self._sql = sa
        where = _postgres(url)
        try:
            self._engine = sa.create_engine(where, pool_pre_ping=True)
            with self.asking(), warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._storage = optuna.storages.RDBStorage(
                    where,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=heartbeat,
                    grace_period=6 * heartbeat,
                    heartbeat_stale_trial_callback=retry,
                )
                self.study = _study(self._storage, name)
        except ModuleNotFoundError as error:
            raise TrainSettingsError(
                "--storage postgresql:// needs a driver; install it with `pip install 'emi-mimicry[postgres]'`"
            ) from error
        except sa.exc.SQLAlchemyError as error:
            raise TrainSettingsError(
                f"--storage {sa.make_url(where).render_as_string()} cannot be used: {str(error).splitlines()[0]}; is "
                "the server there, and does the database exist?"
            ) from error

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold the study's lock; the server drops it when this process dies."""
        with self._engine.connect() as connection:
            connection.execute(self._sql.text("SELECT pg_advisory_lock(:key)"), {"key": _ASKING})
            try:
                yield
            finally:
                connection.execute(self._sql.text("SELECT pg_advisory_unlock(:key)"), {"key": _ASKING})

    def begin(self, trial_id: int) -> None:
        """Record the first heartbeat of a trial; without one it never counts as lost."""
        self._storage.record_heartbeat(trial_id)

    def alive(self, trial_ids: Sequence[int]) -> None:
        """Record a heartbeat of each, and mark trials failed whose workers have stopped theirs."""
        if time.monotonic() - self._beat < self._heartbeat / 2:
            return
        self._beat = time.monotonic()
        running = {t._trial_id for t in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
        for trial_id in {*trial_ids, *(running - self._seen)}:  # one that died before its first sign of life gets one
            self.begin(trial_id)
        self._seen |= running
        optuna.storages.fail_stale_trials(self.study)

    def close(self) -> None:
        """Close the connections."""
        self._storage.remove_session()
        for engine in (self._storage.engine, self._engine):
            engine.dispose()


def retry(study: Study, trial: FrozenTrial) -> None:
    """Add a copy of a trial whose worker died, which waits for another worker; `RETRIES` times at most.

    Optuna's `RetryHeartbeatStaleTrialCallback` copies the user attributes as well. The copy would have the outcome of
    the failed trial, and `counted` would count it as failed if it was lost in turn before it was copied.
    """
    history = [*trial.system_attrs.get(HISTORY, ()), trial.number]
    if len(history) <= RETRIES:
        copy = optuna.trial.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={HISTORY: history},
        )
        study.add_trial(copy)


def counted(study: Study) -> list[FrozenTrial]:
    """Return the trials that count: all but those whose worker died and that were, or will be, run again."""
    trials = study.get_trials(deepcopy=False)
    heirs = {number for trial in trials for number in trial.system_attrs.get(HISTORY, ())}
    return [trial for trial in trials if trial.number not in heirs and not _orphaned(trial)]


def _orphaned(trial: FrozenTrial) -> bool:
    """Return whether its worker died, and the process that noticed it died before it made the copy."""
    retried = len(trial.system_attrs.get(HISTORY, ()))
    return trial.state == TrialState.FAIL and OUTCOME not in trial.user_attrs and retried < RETRIES


def _study(storage: Any, name: str) -> Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # `Status` reports the same
    return optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)


def _postgres(url: str) -> str:
    """Return the URL with the driver that emi installs."""
    scheme, colon, rest = url.partition("://")
    if not colon or scheme.split("+")[0] not in ("postgresql", "postgres"):
        raise TrainSettingsError(
            f"--storage {scheme}://… cannot be shared by workers safely; give postgresql://USER:PASSWORD@HOST/DATABASE"
            ", or leave it out for one machine"
        )
    return f"postgresql+psycopg://{rest}"
