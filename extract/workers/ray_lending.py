"""Lend windows to the actors of a Ray cluster until all are done, whatever becomes of the actors."""

import contextlib
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from cache.reader import open_cache
from extract.errors import ExtractProcessError
from extract.stats import PipelineStats
from extract.workers.processes import OnResult
from extract.workers.ray_actor import Job, Report, Window

ATTEMPTS = 3
"""Times that a window is lent: on machines that can be taken away, two losses in a row are no sign of a bad clip."""
LENT_AT_ONCE = 4
"""Windows lent together while many are left: the clips of the next are decoded while one is computed."""
PLACED_WITHIN = 600.0
"""Seconds in which the cluster must find room for an actor; starting a machine in a cloud takes minutes."""
STOPPED_WITHIN = 20.0
"""Seconds for the actors to commit what they have; what is killed then is computed again by the next run."""
TICK = 5.0
NAMED = 5


@dataclass(eq=False)
class _Actor:
    """An actor, what it was lent, and what is awaited of it: that it is loaded, or the next report."""

    handle: Any
    placed: Any
    awaited: Any
    where: str = ""
    lent: dict[int, Window] = field(default_factory=dict)
    stats: PipelineStats = field(default_factory=PipelineStats)


class Lender:
    """Starts actors and keeps them busy. Close it to let them commit what they have, and end them.

    Args:
        ray: the package, connected.
        new: makes an actor (`extract.workers.ray_actor.WindowFiller`).
        job: what every actor is told.
        stats: what the actors waited for is added.
        on_result: called for every clip of a window that is committed.

    Attributes:
        notes: a sentence for each actor that was lost.
    """

    def __init__(
        self, ray: ModuleType, new: Callable[[], Any], job: Job, stats: PipelineStats, on_result: OnResult
    ) -> None:
        self._ray, self._new, self._job, self._on_result = ray, new, job, on_result
        self._stats, self._ended = stats, [replace(stats)]
        self._actors: list[_Actor] = []
        self._queue: deque[Window] = deque()
        self._attempts: Counter[int] = Counter()
        self._given_up: list[Window] = []
        self._failed_starts, self._seen = 0, time.monotonic()
        self.notes: list[str] = []

    def lend_all(self, windows: Sequence[Window], count: int) -> None:
        """Have every window computed by `count` actors.

        Raises:
            ExtractProcessError: windows were lost ATTEMPTS times, which is said once the others are done; or there is
                no actor to be had.
            Exception: what an actor raised.
        """
        self._queue.extend(windows)
        for _ in range(count):
            self._start()
        while self._queue or any(actor.lent for actor in self._actors):
            self._lend()
            self._take(self._next())
        if self._given_up:
            names = ", ".join(f"{w.sources[0].id!r} to {w.sources[-1].id!r}" for w in self._given_up[:NAMED])
            more = f" and of {len(self._given_up) - NAMED} more windows" if len(self._given_up) > NAMED else ""
            raise ExtractProcessError(
                f"every actor that was given the clips {names}{more} was lost ({self.notes[-1]}): what was left is "
                f"missing in {self._job.cache}. The same command goes on from there; with --engine local it says more"
            )

    def close(self) -> None:
        """Let the actors commit what they have, and end them."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            stopped = [actor.handle.stop.remote() for actor in self._actors if actor.where]
            self._ray.wait(stopped, num_returns=max(1, len(stopped)), timeout=STOPPED_WITHIN)
            for actor in self._actors:
                self._ray.kill(actor.handle)

    def _start(self) -> None:
        handle = self._new()
        loaded = handle.load.remote(self._job)  # first, so that what it raises is not hidden behind another's
        self._actors.append(_Actor(handle, handle.ping.remote(), loaded))

    def _lend(self) -> None:
        """Give idle actors something to do: several windows at first, single ones towards the end and after a loss."""
        for actor in self._actors:
            if actor.awaited is None and self._queue:
                many = min(LENT_AT_ONCE, max(1, len(self._queue) // (2 * len(self._actors))))
                lent = [self._queue.popleft()]
                while len(lent) < many and not any(self._attempts[w.number] for w in (lent[0], self._queue[0])):
                    lent.append(self._queue.popleft())
                self._attempts.update(window.number for window in lent)
                actor.lent = {window.number: window for window in lent}
                fill = actor.handle.fill.options(num_returns="streaming")
                actor.awaited = fill.remote([window.everywhere() for window in lent])

    def _next(self) -> _Actor:
        """The next actor that has something to say."""
        while True:
            by_ref = {actor.awaited: actor for actor in self._actors if actor.awaited is not None}
            if not by_ref:
                raise ExtractProcessError(
                    f"no actor could be started on the Ray cluster ({self.notes[-1]}); `ray status` shows its "
                    "machines, and the same command goes on from here"
                )
            ready, _ = self._ray.wait(list(by_ref), timeout=TICK)
            if ready or any(self._ray.wait([actor.placed], timeout=0)[0] for actor in self._actors):
                self._seen = time.monotonic()
            if ready:
                return by_ref[ready[0]]
            if time.monotonic() - self._seen > PLACED_WITHIN:
                raise ExtractProcessError(
                    f"the Ray cluster had no room for an actor within {PLACED_WITHIN / 60:.0f} minutes; `ray status` "
                    "says what it is busy with"
                )

    def _take(self, actor: _Actor) -> None:
        """Take in what an actor has to say, which may be that it is no more."""
        try:
            if not actor.where:
                actor.where, actor.awaited = self._ray.get(actor.awaited), None
                self._failed_starts = 0
                return
            report: Report = self._ray.get(next(actor.awaited))
        except StopIteration:
            actor.awaited = None
            self._give_back(actor)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._lose(actor, str(error))
        else:
            window, actor.stats = actor.lent.pop(report.number), report.stats
            self._stats.become_sum_of([*self._ended, *(each.stats for each in self._actors)])
            paths = {source.id: str(source.path) for source in window.sources}
            for id, seconds, told in report.results:
                self._on_result(id, seconds, told and replace(told, path=told.path and paths[id]))

    def _lose(self, actor: _Actor, error: str) -> None:
        """Part with an actor that died or cannot be reached, and start another in its place."""
        self._actors.remove(actor)
        self._ended.append(actor.stats)
        self._ray.kill(actor.handle)
        if "failed to import on the worker" in error:
            raise ExtractProcessError(
                f"a machine of the Ray cluster cannot import emi ({_last_line(error)}); install the same version of it "
                "on every one"
            )
        who = f"the actor on {actor.where}" if actor.where else "an actor that had not loaded the backbone yet"
        self.notes.append(f"{who} was lost: {_why(error)}; what it left was given to another")
        self._failed_starts += not actor.where
        self._give_back(actor)
        if self._queue and (actor.where or self._failed_starts < ATTEMPTS):
            self._start()

    def _give_back(self, actor: _Actor) -> None:
        """Queue what an actor was lent and did not report, less what it committed."""
        lent, actor.lent = actor.lent, {}
        if not lent:
            return
        with open_cache(self._job.cache) as store:
            seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
        for window in reversed(lent.values()):
            there = frozenset(source.id for source in window.sources if source.id in seconds) - window.refresh
            for id in there - window.done:
                self._on_result(id, seconds[id], None)
            if len(there) == len(window.sources):
                continue
            left = replace(window, done=there)
            if self._attempts[window.number] < ATTEMPTS:
                self._queue.appendleft(left)
            else:
                self._given_up.append(left)


def _why(error: str) -> str:
    """Ray's reason in a few words; it writes a page, addressed to programmers."""
    if "low on memory" in error:
        return "its machine ran out of memory (--processes bounds the actors)"
    found = re.findall(r"because (its [^.]*)\.", error)
    return found[-1] if found else _last_line(error)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()
