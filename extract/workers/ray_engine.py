"""Share an extraction between the machines of a Ray cluster, or the cores of this one: an actor per GPU or CPU core.

Actors are given whole windows (`extract.plan`). Batches are planned within a window, so a clip has the bytes of the
local engine, whichever actor computes it. An actor commits a window before it reports it. If an actor is lost, alone or
with its machine, another actor computes the clips of its windows that were not committed.

`ray.util.ActorPool` gets one result per task, so an actor would neither report each window nor decode the next one in
the meantime, and it does not say which task was lost with an actor. Ray Data restarts actors and retries their tasks
without limit, and tells the caller neither which clips killed an actor nor why.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from cache.paths import at_home
from cache.reader import open_cache
from cache.system.machine import available_cores
from cache.writer import CacheWriter
from extract.backbones import named_family
from extract.errors import ExtractProcessError, ExtractSettingsError
from extract.failures import OnResult
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.stats import PipelineStats
from extract.workers.ray_actor import Job, Report, Window, WindowFiller

ATTEMPTS = 3
"""Times that a window is tried: where machines can be taken away, two losses do not prove that a clip is the cause."""
WINDOWS_PER_TASK = 4
"""Windows per task while many are left: an actor decodes the next window while it computes one."""
PLACED_WITHIN = 600.0
"""Seconds in which the cluster must find room for an actor; starting a machine in a cloud takes minutes."""
STOPPED_WITHIN = 20.0
"""Seconds for the actors to commit what they have; the next run computes the rest again."""
NAMED = 5
OBJECT_STORE_BYTES = 128 << 20
"""Of a cluster that is started here: only reports pass through it, and Ray's default is a third of the memory."""


def run_ray(
    plan: ExtractPlan, settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult
) -> list[str]:
    """Fill the cache of a plan with the actors of a cluster.

    Args:
        plan: what is to be done.
        settings: `address` names the cluster; None starts one on this machine for the run.
        cache: its path, created where missing.
        stats: the actors' times are added during the run.
        on_result: called for every clip of a committed window.

    Returns:
        A sentence for each actor that was lost.

    Raises:
        ExtractSettingsError: there is no such cluster, or it lacks what was asked for.
        ExtractProcessError: all actors that were given a window were lost, or no actor could be started.
        Exception: raised by an actor.
    """
    import ray

    with _connected(ray, settings.address):
        resource, count = _actors(ray, settings)
        resources = ray.cluster_resources()
        actor_settings = replace(  # one device, and a share of the cores for decoding
            settings,
            backbone=_absolute(settings.backbone),
            device="cuda" if resource == "GPU" else "cpu",
            workers=settings.workers or max(1, int(resources["CPU"] // resources[resource])),
            processes=1,
            engine="local",
            address=None,
        )
        with CacheWriter(cache, plan.header):
            pass  # create the cache once, before several actors open it
        job = Job(
            cache=cache if "://" in cache else os.path.abspath(cache),
            media=next((source.path.absolute() for source in plan.sources if source.path.exists()), None),
            header=plan.header,
            identity=replace(plan.identity, source=_absolute(plan.identity.source)),
            settings=actor_settings,
            refresh=plan.refresh,
        )
        options = {"num_cpus": 1, "num_gpus": int(resource == "GPU"), "max_restarts": 0, "max_concurrency": 2}
        todo = [
            Window(number, window, done)
            for number, window in enumerate(plan.windows)
            if len(done := frozenset(source.id for source in window if source.id in plan.present)) < len(window)
        ]
        scheduler = WindowScheduler(ray, ray.remote(**options)(WindowFiller).remote, job, stats, on_result)
        with contextlib.closing(scheduler):
            scheduler.run(todo, min(count, len(todo)))
    return scheduler.notes


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Use the existing connection, or connect for a while; a cluster that is started for the run ends with it."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {
            "num_cpus": available_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    on_terminate = signal.getsignal(signal.SIGTERM)
    host, _, port = (address or "").rpartition(":")
    try:
        if "://" in host or (host and not port.isdecimal()):
            raise ValueError("it is not auto or HOST:PORT; run this on a machine of the cluster")
        if host:  # where nothing listens, Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExtractSettingsError(
            f"no Ray cluster answers at {address or 'this machine'} ({' '.join(str(error).split())}); `ray start "
            "--head` starts one, and without --address one is started here for the run"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's handler would end the run without cleaning up
    try:
        yield
    finally:
        ray.shutdown()


def _actors(ray: ModuleType, settings: ExtractSettings) -> tuple[str, int]:
    """Return the resource of which each actor gets one, "GPU" or "CPU", and the number of actors."""
    available = {
        resource: sum(int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"])
        for resource in ("GPU", "CPU")
    }
    if settings.device == "cuda" and not available["GPU"]:
        raise ExtractSettingsError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    resource = "GPU" if available["GPU"] and settings.device != "cpu" else "CPU"
    if not available["CPU"]:
        raise ExtractSettingsError("the Ray cluster offers no CPU; `ray status` shows its machines")
    return resource, min(available[resource], settings.processes or available[resource])


def _absolute(backbone: str) -> str:
    """Return a backbone's name with the absolute path of a folder; actors have another working folder."""
    folder = Path(at_home(backbone))
    return str(folder.absolute()) if named_family(backbone) is None and folder.is_dir() else backbone


@dataclass(eq=False)
class _Actor:
    """An actor and its task.

    Attributes:
        handle: Ray's handle of the actor.
        placed: reference that is ready when the cluster has found room for the actor.
        pending: reference to the result of `load`, then the stream of reports of a task; None without a task.
        host: where the actor runs, after `load`.
        windows: of its task that it has not reported, by number.
        stats: its times so far.
    """

    handle: Any
    placed: Any
    pending: Any
    host: str = ""
    windows: dict[int, Window] = field(default_factory=dict)
    stats: PipelineStats = field(default_factory=PipelineStats)


class WindowScheduler:
    """Starts actors and gives them windows. `close` lets them commit what they have, and ends them.

    Args:
        ray: the package, connected to a cluster.
        new_actor: starts an `extract.workers.ray_actor.WindowFiller`.
        job: for every actor.
        stats: the actors' times are added.
        on_result: called for every clip of a committed window.

    Attributes:
        notes: a sentence for each actor that was lost.
    """

    def __init__(
        self, ray: ModuleType, new_actor: Callable[[], Any], job: Job, stats: PipelineStats, on_result: OnResult
    ) -> None:
        self._ray, self._new_actor, self._job, self._on_result = ray, new_actor, job, on_result
        self._stats, self._past_stats = stats, [replace(stats)]
        self._actors: list[_Actor] = []
        self._queue, self._retries = deque[Window](), deque[Window]()
        self._failed: list[Window] = []
        self._failed_starts = 0
        self.notes: list[str] = []

    def run(self, windows: Sequence[Window], num_actors: int) -> None:
        """Have every window computed.

        Raises:
            ExtractProcessError: windows were lost `ATTEMPTS` times (raised after the others are done), or no actor
                could be started.
            Exception: raised by an actor.
        """
        self._queue.extend(windows)
        for _ in range(num_actors):
            self._start_actor()
        while self._queue or self._retries or any(actor.windows for actor in self._actors):
            self._assign()
            self._receive(self._next_actor())
        if self._failed:
            names = ", ".join(f"{w.sources[0].id!r} to {w.sources[-1].id!r}" for w in self._failed[:NAMED])
            more = f" and of {len(self._failed) - NAMED} more windows" if len(self._failed) > NAMED else ""
            raise ExtractProcessError(
                f"every actor that was given the clips {names}{more} was lost ({self.notes[-1]}): the rest of these "
                f"clips is missing in {self._job.cache}. The same command resumes there; --engine local shows more of "
                "the error"
            )

    def close(self) -> None:
        """Let the actors commit what they have, and end them."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            stopped = [actor.handle.stop.remote() for actor in self._actors if actor.host]
            self._ray.wait(stopped, num_returns=max(1, len(stopped)), timeout=STOPPED_WITHIN)
            for actor in self._actors:
                self._ray.kill(actor.handle)

    def _start_actor(self) -> None:
        handle = self._new_actor()
        loaded = handle.load.remote(self._job)  # first: an error of the actor's constructor is reported here
        self._actors.append(_Actor(handle, placed=handle.__ray_ready__.remote(), pending=loaded))

    def _assign(self) -> None:
        """Give idle actors tasks: several windows at first, single ones towards the end and after a loss."""
        for actor in self._actors:
            if actor.pending is None and (queue := self._retries or self._queue):
                fair = max(1, len(queue) // (2 * len(self._actors)))
                count = 1 if queue is self._retries else min(WINDOWS_PER_TASK, fair)
                windows = [queue.popleft() for _ in range(count)]
                actor.windows = {window.number: window for window in windows}
                fill = actor.handle.fill.options(num_returns="streaming")
                # absolute, because an actor has another working folder
                sources = [[replace(source, path=source.path.absolute()) for source in w.sources] for w in windows]
                actor.pending = fill.remote([replace(w, sources=s) for w, s in zip(windows, sources, strict=True)])

    def _next_actor(self) -> _Actor:
        """Wait for the next actor that has loaded, reported or died."""
        while True:
            pending = {actor.pending: actor for actor in self._actors if actor.pending is not None}
            if not pending:
                raise ExtractProcessError(
                    f"no actor could be started on the Ray cluster ({self.notes[-1]}); `ray status` shows its "
                    "machines, and the same command resumes here"
                )
            ready, _ = self._ray.wait(list(pending), timeout=PLACED_WITHIN)
            if ready:
                return pending[ready[0]]
            if not any(self._ray.wait([actor.placed], timeout=0)[0] for actor in self._actors):
                raise ExtractProcessError(
                    f"the Ray cluster had no room for an actor within {PLACED_WITHIN / 60:.0f} minutes; `ray status` "
                    "shows what keeps it busy"
                )

    def _receive(self, actor: _Actor) -> None:
        """Handle what is ready of an actor: that it has loaded, a report, the end of its task, or its death."""
        try:
            if not actor.host:
                actor.host, actor.pending, self._failed_starts = self._ray.get(actor.pending), None, 0
                return
            number, results, stats = cast(Report, self._ray.get(next(actor.pending)))
        except StopIteration:
            actor.pending = None
            self._requeue(actor)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            self._replace(actor, str(error))
        else:
            window, actor.stats = actor.windows.pop(number), stats
            self._stats.become_sum_of([*self._past_stats, *(each.stats for each in self._actors)])
            paths = {source.id: str(source.path) for source in window.sources}
            for id, seconds, remark in results:
                self._on_result(id, seconds, remark and replace(remark, path=remark.path and paths[id]))

    def _replace(self, actor: _Actor, error: str) -> None:
        """Remove an actor that died or cannot be reached, and start another in its place."""
        self._actors.remove(actor)
        self._past_stats.append(actor.stats)
        self._ray.kill(actor.handle)
        if "failed to import on the worker" in error:
            raise ExtractProcessError(
                f"a machine of the Ray cluster cannot import emi ({_last_line(error)}); install the same version of it "
                "on every one"
            )
        name = f"the actor on {actor.host}" if actor.host else "an actor that had not loaded the backbone yet"
        self.notes.append(f"{name} was lost: {_reason(error)}; another actor did the rest of its work")
        self._failed_starts += not actor.host
        self._requeue(actor)
        if (self._queue or self._retries) and (actor.host or self._failed_starts < ATTEMPTS):
            self._start_actor()

    def _requeue(self, actor: _Actor) -> None:
        """Queue the windows that an actor did not report, without the clips that it committed."""
        windows, actor.windows = actor.windows, {}
        if not windows:
            return
        with open_cache(self._job.cache) as store:
            seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
        for window in windows.values():
            done = frozenset(s.id for s in window.sources if s.id in seconds) - self._job.refresh
            for id in done - window.done:
                self._on_result(id, seconds[id], None)
            if len(done) < len(window.sources):
                rest = replace(window, done=done, attempt=window.attempt + 1)
                (self._retries if rest.attempt <= ATTEMPTS else self._failed).append(rest)


def _reason(error: str) -> str:
    """Return Ray's reason in a few words; Ray writes a page for programmers."""
    if "low on memory" in error:
        return "its machine ran out of memory (--processes limits the number of actors)"
    found = re.findall(r"because (its [^.]*)\.", error)
    return found[-1] if found else _last_line(error)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1].strip()
