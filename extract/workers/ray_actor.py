"""What runs in a Ray cluster: an actor that keeps a backbone and a writer, and fills the windows that it is lent.

A plain class, which `ray_engine` hands to Ray; nothing here needs Ray or, before a backbone is loaded, torch.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cache.containers.container import open_container
from cache.format import Header
from cache.version import version
from extract.backbones import Identity
from extract.errors import ExtractProcessError
from extract.settings import ExtractSettings
from extract.sources import Source
from extract.stats import PipelineStats

if TYPE_CHECKING:
    from extract.fill import Written


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is the same for every actor.

    Attributes:
        cache: where, as every machine finds it.
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
        number: in the run.
        sources: all its clips.
        done: ids of those that the cache has.
        refresh: ids of those that it has and that are extracted again.
    """

    number: int
    sources: Sequence[Source]
    done: frozenset[str]
    refresh: frozenset[str] = frozenset()

    def everywhere(self) -> "Window":
        """With paths that do not start in this process's working folder."""
        return replace(self, sources=[replace(source, path=source.path.absolute()) for source in self.sources])


@dataclass(frozen=True, slots=True)
class Report:
    """A window that is committed: each clip that was tried, and what the actor has waited for so far."""

    number: int
    results: "Sequence[Written]"
    stats: PipelineStats


class WindowFiller:
    """The actor. Two of its methods may run at once: `stop` beside another."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._working, self._stopping = threading.Lock(), threading.Event()
        self._stats = PipelineStats()

    def ping(self) -> None:
        """Answer, once there is room for this actor."""

    def load(self, job: Job) -> str:
        """Load the backbone and open the cache; returns where this is, for messages.

        Raises:
            ExtractProcessError: this machine does not see the media or the cache, or has another version of emi.
            EmiError: the backbone or the cache cannot be used from here.
        """
        here = f"{socket.gethostname()} (process {os.getpid()})"
        self._check(job, here)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see emi/__init__.py; before torch
        from cache.writer import CacheWriter
        from extract.fill import load_extractor

        cores = 1 if job.settings.device == "cpu" else None  # Ray lends a core; the machine's others are not ours
        self._extractor = load_extractor(job.identity, job.settings, job.header.fingerprint["precision"], cores)
        self._writer = self._open.enter_context(CacheWriter(job.cache, job.header, refresh=job.refresh))
        return here

    def _check(self, job: Job, here: str) -> None:
        if version() != job.header.provenance["emi"]:
            raise ExtractProcessError(
                f"{here} has emi {version()}, and this run was planned by {job.header.provenance['emi']}; install "
                "the same on every machine of the cluster"
            )
        if job.media is not None and not job.media.exists():  # or all it is lent would be failures
            raise ExtractProcessError(f"{here} sees no {job.media}; mount the media at the same path on every machine")
        if open_container(job.cache).read_attributes() is None:  # or it would make one of its own
            raise ExtractProcessError(
                f"{here} sees no {job.cache}; share its folder, or use a cache in an object store"
            )

    def fill(self, windows: Sequence[Window]) -> Iterator[Report]:
        """Compute windows in order; each is committed before it is reported."""
        with self._working:
            skipped = {s.id for w in windows for s in w.sources if s.id in w.done or s.id in self._writer.done}
            left = {w.number: {s.id for s in w.sources} - skipped for w in windows}
            number_of = {id: number for number, ids in left.items() for id in ids}
            results: dict[int, list[Written]] = {number: [] for number in left}
            filled = self._extractor.fill([w.sources for w in windows], self._writer, self._stats, skipped)
            with contextlib.closing(filled):
                for result in filled:
                    number = number_of[result[0]]
                    results[number].append(result)
                    if len(results[number]) == len(left[number]):
                        self._writer.commit()
                        yield Report(number, results.pop(number), replace(self._stats))
                    if self._stopping.is_set():
                        return
            yield from (Report(number, (), replace(self._stats)) for number in results)  # others did all of these

    def stop(self) -> None:
        """Let go of the cache; what `fill` is at is committed as far as it got."""
        self._stopping.set()
        with self._working:
            self._open.close()
