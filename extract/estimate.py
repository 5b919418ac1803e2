"""Estimate an extraction: hours of media from the files' headers, bytes, and minutes from a measured batch.

Nothing is written. Of many files, a sample is read.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from extract.failures import Failure
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.sources import Source

LOOKED_AT = 400
"""Maximum number of files whose headers are read: on a network disk one may take 10 ms."""
MEASURED = 64
"""Maximum number of clips that are computed."""
CLIP_BYTES = 100
"""Bytes of the index per clip: its id, length and checksum, stored twice."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to be done, and its cost.

    Attributes:
        clips: number of clips to extract.
        present: number of clips that the cache holds.
        looked_at: number of clips whose headers were read; below `clips`, the figures are extrapolated from these.
        silent: number of these that state no length, or cannot be opened.
        seconds: of media after the cut, or None where it is unknown.
        bytes: by which the cache would grow, or None.
        minutes: on this machine, or None.
        measured: what `minutes` is based on, or why it is unknown.
        cut: whether long clips are cut.
        medium: what is read, in words.
    """

    clips: int
    present: int
    looked_at: int = 0
    silent: int = 0
    seconds: float | None = None
    bytes: int | None = None
    minutes: float | None = None
    measured: str = ""
    cut: bool = True
    medium: str = "audio"

    def text(self) -> str:
        """Return one line each for the clips, the length of their media, the disk and the time."""
        count = f"clips: {self.clips} to do, {self.present} present"
        if not self.clips:
            return count
        sampled = self.looked_at < self.clips
        about = "about " if self.silent or sampled else ""
        seen = f" (from {self.looked_at} files' headers)" if sampled else ""
        if self.silent:
            seen += f"; {self.silent} of {self.looked_at} files state no length, or cannot be opened"
        cut = " after the cut" if self.cut else ""
        length = "unknown" if self.seconds is None else f"{about}{_two_digits(self.seconds / 3600)} h{cut}"
        disk = "unknown" if self.bytes is None else f"{about}{_two_digits(self.bytes / 1e9)} GB"
        minutes = "unknown" if self.minutes is None else f"about {_minutes(self.minutes)}"
        return f"{count}\n{self.medium}: {length}{seen}\ndisk: {disk}\ntime: {minutes} ({self.measured})"


def estimate(plan: ExtractPlan, settings: ExtractSettings, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Read the headers of the clips that a plan has to do, and compute a few clips.

    Args:
        plan: from `extract.plan.plan`.
        settings: of the extraction.
        clock: returns seconds.

    Raises:
        BackboneError: the backbone's files do not fit.
    """
    todo = [source for source in plan.sources if source.id not in plan.present]
    present = len(plan.present)
    if not todo:
        return Estimate(clips=0, present=present)
    sample = _spread(todo, LOOKED_AT)
    lengths = [plan.modality.stated_seconds(source, settings.decoding) for source in sample]
    stated = sorted((settings.used(s), source) for s, source in zip(lengths, sample, strict=True) if s)
    mean = float(np.mean([seconds for seconds, _ in stated])) if stated else None
    measured, rate = _measure(plan, settings, [source for _, source in stated] or sample, mean, clock)
    header = plan.header
    row_bytes = sum(a.dtype.itemsize * math.prod(a.shape) for a in header.layout.values() if a.by_frame)
    seconds, size = None if mean is None else mean * len(todo), None
    if seconds is not None and header.hop_seconds is not None:
        size = round(seconds * row_bytes / header.hop_seconds) + CLIP_BYTES * len(todo)
    return Estimate(
        clips=len(todo),
        present=present,
        looked_at=len(sample),
        silent=len(sample) - len(stated),
        seconds=seconds,
        bytes=size,
        minutes=None if rate is None or seconds is None else seconds / rate / 60,
        measured=measured,
        cut=settings.max_seconds is not None,
        medium=plan.modality.medium,
    )


def _measure(
    plan: ExtractPlan,
    settings: ExtractSettings,
    sources: Sequence[Source],
    mean: float | None,
    clock: Callable[[], float],
) -> tuple[str, float | None]:
    """Compute clips of all lengths; return (what was measured, seconds of media per second, or None)."""
    if settings.engine == "ray":
        return "not measured: the cluster's machines do the work", None
    from extract.clips import load_extractor  # which imports torch

    longest = settings.max_seconds or plan.modality.longest_held  # of whole clips, only the start is measured
    settings = replace(settings, max_seconds=longest)
    extractor = load_extractor(plan.identity, settings, plan.header.fingerprint["precision"])
    fitting = extractor.batch_seconds * extractor.parallel_batches / min(mean or longest, longest)
    sample = _spread(sources, max(1, min(MEASURED, int(fitting))))
    list(extractor.extract([sample[-1:]]))  # the first calls of kernels and codecs take longer
    started = clock()
    results = list(extractor.extract([sample]))
    elapsed = max(1e-9, clock() - started)
    failures = [result for result in results if isinstance(result, Failure)]
    if len(failures) == len(results):
        return f"not measured: {failures[0].path} {failures[0].reason}", None
    seconds = sum(plan.header.duration(r) for r in results if not isinstance(r, Failure))
    processes = settings.resolved_processes()
    together = f", times {processes} processes" if processes > 1 else ""
    failed = f"; {len(failures)} of the clips tried cannot be read, {failures[0].path} first" if failures else ""
    return (
        f"measured on {len(results) - len(failures)} clips: {seconds:.1f} s of {plan.modality.medium} "
        f"in {elapsed:.2f} s, {seconds / elapsed:.0f} x real time{together}{failed}",
        processes * seconds / elapsed,
    )


def _spread(sources: Sequence[Source], count: int) -> Sequence[Source]:
    """Return up to `count` of the clips at equal distances, including the first and the last."""
    indices = np.linspace(0, len(sources) - 1, min(count, len(sources))).round().astype(int)
    return [sources[i] for i in indices]


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min" if minutes >= 0.1 else "0.1 min or less"
