"""What runs in a Ray cluster: an actor that keeps a backbone and a cache writer, and extracts windows of clips.

It is a plain class, which `ray_engine` hands to Ray. Importing it needs neither Ray nor torch.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache.containers.by_suffix import open_container
from cache.format import Header
from cache.version import version
from cache.writer import CacheWriter
from extract.backbones import Identity
from extract.errors import ExtractProcessError
from extract.failures import ClipResult
from extract.settings import ExtractSettings
from extract.sources import Source
from extract.stats import PipelineStats


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for every actor.

    Attributes:
        cache: its path, as every machine finds it.
        media: one file that every machine must find, or None.
        header: of the cache.
        identity: the backbone.
        settings: with "cpu" or "cuda" as the device.
        refresh: ids of clips that the cache holds and that are extracted again.
    """

    cache: str
    media: Path | None
    header: Header
    identity: Identity
    settings: ExtractSettings
    refresh: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Window:
    """One window of the plan.

    Attributes:
        number: in the plan.
        sources: all its clips.
        done: ids of those that the cache holds.
        attempt: how often it was given to an actor, this time included.
    """

    number: int
    sources: Sequence[Source]
    done: frozenset[str]
    attempt: int = 1


Report = tuple[int, Sequence[ClipResult], PipelineStats]
"""Number of a committed window, the clips that were tried, and the actor's times so far."""


class WindowFiller:
    """The actor. Two of its methods may run at once: `stop` beside another."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._filling, self._stopping = threading.Lock(), threading.Event()
        self._stats = PipelineStats()

    def load(self, job: Job) -> str:
        """Load the backbone and open the cache; return the machine's name and the process id.

        Raises:
            ExtractProcessError: this machine does not see the media or the cache, or has another version of emi.
            EmiError: the backbone or the cache cannot be used on this machine.
        """
        host = f"{socket.gethostname()} (process {os.getpid()})"
        planned_by = job.header.provenance["emi"]
        if version() != planned_by:
            raise ExtractProcessError(
                f"{host} has emi {version()}, and this run was planned by {planned_by}; install the same version on "
                "every machine of the cluster"
            )
        if job.media is not None and not job.media.exists():  # else all its clips would fail
            raise ExtractProcessError(f"{host} sees no {job.media}; mount the media at the same path on every machine")
        if open_container(job.cache).read_attributes() is None:  # else it would create another cache
            raise ExtractProcessError(
                f"{host} sees no {job.cache}; share its folder, or use a cache in an object store"
            )
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see emi/__init__.py; before torch
        from extract.clips import load_extractor

        batches = 1 if job.settings.device == "cpu" else None  # Ray assigns one core; the others are not ours
        self._extractor = load_extractor(job.identity, job.settings, job.header.fingerprint["precision"], batches)
        self._writer = self._open.enter_context(CacheWriter(job.cache, job.header, refresh=job.refresh))
        return host

    def fill(self, windows: Sequence[Window]) -> Iterator[Report]:
        """Extract windows in order; commit each before it is reported."""
        with self._filling:
            done = {s.id for w in windows for s in w.sources if s.id in w.done or s.id in self._writer.done}
            todo = {window.number: {source.id for source in window.sources} - done for window in windows}
            number_of = {id: number for number, ids in todo.items() for id in ids}
            results: dict[int, list[ClipResult]] = {number: [] for number in todo}
            filled = self._extractor.fill([window.sources for window in windows], self._writer, self._stats, done)
            with contextlib.closing(filled):
                for result in filled:
                    number = number_of[result[0]]
                    results[number].append(result)
                    if len(results[number]) == len(todo[number]):
                        self._writer.commit()
                        yield number, results.pop(number), replace(self._stats)
                    if self._stopping.is_set():
                        return
            yield from ((number, (), replace(self._stats)) for number in results)  # nothing was left to do

    def stop(self) -> None:
        """Close the cache; clips that `fill` has finished are committed."""
        self._stopping.set()
        with self._filling:
            self._open.close()
