"""Which actor is given which windows, and what happens when an actor is lost, with a simulated Ray."""

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import extract.workers.ray_engine
from extract.errors import ExtractProcessError
from extract.failures import Failure
from extract.sources import Source
from extract.stats import PipelineStats
from extract.workers.ray_actor import Window
from extract.workers.ray_engine import WindowScheduler


class LostError(Exception):
    """In place of RayError: an actor died."""


class RaisedError(LostError):
    """In place of RayTaskError: an actor raised."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Ref:
    """A reference that is ready at once with a value or an error, or (`never`) never."""

    def __init__(self, value=None, never=False):
        self.value, self.never = value, never


class Stream(Ref):
    """A stream of reports, of which the last may be an error."""

    def __init__(self, reports):
        super().__init__()
        self._reports = reports

    def __next__(self):
        try:
            return Ref(next(self._reports))
        except LostError as error:
            return Ref(error)


class Ray:
    """The part of the package that the scheduler uses."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=RaisedError)

    def __init__(self):
        self.killed = []
        self.kill = self.killed.append

    def wait(self, refs, num_returns=1, **_):
        ready = [ref for ref in refs if not ref.never][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value


def method(run):
    """A method of an actor's handle."""
    return SimpleNamespace(remote=run, options=lambda **_: SimpleNamespace(remote=run))


@pytest.fixture
def committed(monkeypatch):
    """Ids of the clips that the cache holds."""
    ids = []

    def open_cache(_):
        return contextlib.nullcontext(SimpleNamespace(ids=list(ids), seconds=np.ones(len(ids))))

    monkeypatch.setattr(extract.workers.ray_engine, "open_cache", open_cache)
    return ids


@pytest.fixture
def schedule(committed):
    """Give windows of two clips to actors whose `fill` is given; return the tasks, the results and the notes."""

    def run(count, fill, actors=2, load=lambda: "here", placed=True):
        seen = SimpleNamespace(tasks=[], results=[])

        def filled(windows):
            seen.tasks.append([window.number for window in windows])
            return Stream(fill(windows))

        def actor():
            return SimpleNamespace(
                __ray_ready__=method(lambda: Ref(never=not placed)),
                load=method(lambda _: Ref(load(), never=not placed)),
                fill=method(filled),
                stop=method(Ref),
            )

        job, ray = SimpleNamespace(cache="f.zarr", refresh=frozenset()), Ray()
        scheduler = WindowScheduler(ray, actor, job, PipelineStats(), lambda *result: seen.results.append(result))
        windows = [Window(i, [Source(f"{i}{c}", Path(f"{i}{c}.wav")) for c in "ab"], frozenset()) for i in range(count)]
        with contextlib.closing(scheduler):
            scheduler.run(windows, actors)
        assert len(ray.killed) == actors + len(scheduler.notes)
        seen.ids, seen.notes = [id for id, _, _ in seen.results], scheduler.notes
        return seen

    return run


def report(window):
    results = [(source.id, 1.0, None) for source in window.sources if source.id not in window.done]
    return window.number, results, PipelineStats(decode=1.0)


def all_reports(windows):
    for window in windows:
        yield report(window)


def test_a_task_has_several_windows_at_first_and_one_towards_the_end(schedule):
    seen = schedule(24, all_reports)
    assert [len(windows) for windows in seen.tasks] == [4, 4, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1]
    assert sorted(number for windows in seen.tasks for number in windows) == list(range(24))
    assert sorted(seen.ids) == sorted(f"{i}{c}" for i in range(24) for c in "ab")


def test_the_windows_of_a_lost_actor_go_to_others_one_by_one(schedule, committed):
    lost = []

    def fill(windows):
        if not lost:
            lost.append([window.number for window in windows])
            yield report(windows[0])
            committed.append("1a")
            raise LostError("The actor is dead because its worker process has died. See the log.")
        yield from all_reports(windows)

    seen = schedule(20, fill)
    assert lost == [[0, 1, 2, 3]]
    assert all(len(windows) == 1 for windows in seen.tasks[1:] if windows[0] in (1, 2, 3))
    assert len(seen.ids) == len(set(seen.ids)) == 40  # of these 1a was found in the cache
    assert seen.notes == [
        "the actor on here was lost: its worker process has died; another actor did the rest of its work"
    ]


def test_a_window_that_was_committed_and_not_reported_is_not_computed_again(schedule, committed):
    def fill(windows):
        if not committed:
            committed.extend(source.id for source in windows[0].sources)
            raise LostError("lost")
        yield from all_reports(windows)

    seen = schedule(2, fill, actors=1)
    assert seen.tasks == [[0], [1]]
    assert sorted(seen.ids) == ["0a", "0b", "1a", "1b"]


def test_a_window_fails_after_three_attempts_and_the_others_are_done(schedule):
    tried = []

    def fill(windows):
        for window in windows:
            tried.append(window.number)
            if window.number == 2:
                raise LostError("its node is running low on memory")
            yield report(window)

    with pytest.raises(ExtractProcessError, match=r"given the clips '2a' to '2b' was lost \(.*ran out of memory"):
        schedule(20, fill)
    assert tried.count(2) == 3
    assert set(tried) == set(range(20))


def test_after_three_failed_starts_no_more_actors_are_started(schedule):
    starts = []

    def load():
        starts.append(1)
        return LostError("The actor is dead because its node has died. More.")

    with pytest.raises(ExtractProcessError, match=r"no actor could be started .*its node has died"):
        schedule(4, all_reports, load=load)
    assert len(starts) == 4


def test_an_error_of_an_actor_is_raised_at_once(schedule):
    def fill(windows):
        raise RaisedError(ValueError("broken"))
        yield

    with pytest.raises(ValueError, match=r"^broken$"):
        schedule(4, fill)


def test_a_cluster_that_never_has_room_is_an_error(schedule, monkeypatch):
    monkeypatch.setattr(extract.workers.ray_engine, "PLACED_WITHIN", 0.0)
    with pytest.raises(ExtractProcessError, match="had no room for an actor"):
        schedule(4, all_reports, placed=False)


def test_a_machine_that_cannot_import_emi_ends_the_run(schedule):
    error = LostError("The actor with name X failed to import on the worker.\nImportError: No module named 'x'")
    with pytest.raises(ExtractProcessError, match=r"cannot import emi \(ImportError: No module named 'x'\)"):
        schedule(4, all_reports, load=lambda: error)


def test_a_failure_keeps_the_path_that_the_caller_gave(schedule):
    def fill(_):
        yield 0, [("0a", 0.0, Failure("0a", "/elsewhere/0a.wav", "is empty"))], PipelineStats()

    assert schedule(1, fill, actors=1).results == [("0a", 0.0, Failure("0a", "0a.wav", "is empty"))]
