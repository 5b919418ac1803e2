"""What an extraction would take: hours of audio from the files' headers, bytes, and minutes from a measured batch.

Nothing is written. Of many files a part is looked at, spread over all.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.audio.tracks import choose_track
from extract.errors import MediaError
from extract.failures import Failure
from extract.fill import load_extractor
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.sources import Source

LOOKED_AT = 400
"""Files whose headers are read, at most: on a network's disk one may take 10 ms."""
MEASURED = 64
"""Clips that are computed, at most."""
CLIP_BYTES = 100
"""Of the index, for each clip: its id, length and checksum, twice."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What is to be done, and what it would take.

    Attributes:
        clips: to do.
        present: in the cache already.
        looked_at: clips whose headers were read; where fewer than there are, figures are of these.
        silent: of these, clips that do not say how long they are, or cannot be opened.
        seconds: of audio that would be used, after the cut; None is unknown.
        bytes: that the cache would grow by; None is unknown.
        minutes: on this machine; None is unknown.
        measured: what that is concluded from, or why there is no figure.
    """

    clips: int
    present: int
    looked_at: int = 0
    silent: int = 0
    seconds: float | None = None
    bytes: int | None = None
    minutes: float | None = None
    measured: str = ""

    def text(self) -> str:
        """One line each for the clips, the audio, the disk and the time."""
        lines = [f"clips: {self.clips} to do, {self.present} present"]
        if not self.clips:
            return lines[0]
        about = "about " if self.silent or self.looked_at < self.clips else ""
        seen = f" (from {self.looked_at} files' headers)" if self.looked_at < self.clips else ""
        if self.silent:
            seen += f"; {self.silent} of {self.looked_at} files do not say how long they are, or cannot be opened"
        hours = "unknown" if self.seconds is None else f"{about}{_two_digits(self.seconds / 3600)} h after the cut"
        lines.append(f"audio: {hours}{seen}")
        size = "unknown" if self.bytes is None else f"{about}{_gigabytes(self.bytes)}"
        lines.append(f"disk: {size}")
        minutes = "unknown" if self.minutes is None else f"about {_minutes(self.minutes)}"
        lines.append(f"time: {minutes} ({self.measured})")
        return "\n".join(lines)


def estimate(plan: ExtractPlan, settings: ExtractSettings, clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Look at the clips that a plan has to do, and compute a few of them.

    Args:
        plan: from `extract.plan.plan`.
        settings: how it would be done.
        clock: gives seconds.

    Raises:
        BackboneError: the backbone's files do not fit.
    """
    todo = [source for source in plan.sources if source.id not in plan.present]
    present = len(plan.present)
    if not todo:
        return Estimate(clips=0, present=present)
    looked_at = _spread(todo, LOOKED_AT)
    lengths = [header_seconds(source.path, settings.track) for source in looked_at]
    known = [(min(s, settings.max_seconds), source) for s, source in zip(lengths, looked_at, strict=True) if s]
    mean = float(np.mean([seconds for seconds, _ in known])) if known else None
    seconds = None if mean is None else mean * len(todo)
    measured, rate = _measure(plan, settings, [source for _, source in sorted(known)] or looked_at, mean, clock)
    minutes = None if rate is None or seconds is None else seconds / rate / 60
    return Estimate(
        clips=len(todo),
        present=present,
        looked_at=len(looked_at),
        silent=len(looked_at) - len(known),
        seconds=seconds,
        bytes=None if seconds is None else round(seconds * _bytes_per_second(plan)) + CLIP_BYTES * len(todo),
        minutes=minutes,
        measured=measured,
    )


def header_seconds(path: Path, track: int | None = None) -> float | None:
    """How long an audio track of a file is by its header, without decoding any; None where it does not say."""
    import av

    try:
        with av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"}) as container:
            stream, _ = choose_track(container, track)
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return container.duration / 1e6 if container.duration else None
    except (av.error.FFmpegError, OSError, ValueError, MediaError):
        return None


def _measure(
    plan: ExtractPlan,
    settings: ExtractSettings,
    sources: Sequence[Source],
    mean: float | None,
    clock: Callable[[], float],
) -> tuple[str, float | None]:
    """Compute clips of all lengths: what was measured, and seconds of audio a second; None where there is no figure."""
    if settings.engine == "ray":
        return "not measured: the cluster's machines do the work", None
    from extract.clips import extract_clips

    extractor = load_extractor(plan.identity, settings, plan.header.fingerprint["precision"])
    fill = extractor.batch_seconds * extractor.parallel_batches
    chosen = _spread(sources, max(1, min(MEASURED, int(fill / (mean or settings.max_seconds)))))

    def compute(clips: Sequence[Source]) -> list[Failure | float]:
        results = extract_clips(
            [clips],
            extractor.backbone,
            device=extractor.device,
            max_seconds=settings.max_seconds,
            batch_seconds=extractor.batch_seconds,
            parallel_batches=extractor.parallel_batches,
            workers=settings.workers,
            options=settings.decoding,
        )
        return [r if isinstance(r, Failure) else len(r.frames) * plan.header.hop_seconds for r in results]

    compute(chosen[-1:])  # first calls of kernels and codecs take longer
    started = clock()
    found = compute(chosen)
    elapsed = max(1e-9, clock() - started)
    heard = [seconds for seconds in found if not isinstance(seconds, Failure)]
    failures = [failure for failure in found if isinstance(failure, Failure)]
    if not heard:
        return f"not measured: {failures[0].path} {failures[0].reason}", None
    processes = settings.resolved_processes()
    together = f", times {processes} processes" if processes > 1 else ""
    failed = f"; {len(failures)} of the clips tried cannot be read, {failures[0].path} first" if failures else ""
    return (
        f"measured on {len(heard)} clips: {sum(heard):.1f} s of audio in {elapsed:.2f} s, "
        f"{sum(heard) / elapsed:.0f} x real time{together}{failed}",
        processes * sum(heard) / elapsed,
    )


def _bytes_per_second(plan: ExtractPlan) -> float:
    header = plan.header
    row = header.dim * header.dtype.itemsize + (3 * 4 if header.vad_names else 0)
    return row / header.hop_seconds


def _spread(sources: Sequence[Source], count: int) -> list[Source]:
    """As many of them at equal distances, the first and the last among them."""
    if len(sources) <= count:
        return list(sources)
    return [sources[i] for i in np.linspace(0, len(sources) - 1, count).round().astype(int)]


def _gigabytes(size: int) -> str:
    return f"{_two_digits(size / 1e9)} GB"


def _two_digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min" if minutes >= 0.1 else "0.1 min or less"
