"""Fill a feature cache from media: plan, skip what the cache holds, extract the rest."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cache.paths import StrPath
from cache.writer import CacheWriter, seal
from extract.failures import Failure, Note, OnResult, write_failures, write_truncated
from extract.plan import ExtractPlan, plan, single_process_reason
from extract.settings import ExtractSettings
from extract.stats import PipelineStats
from extract.workers.processes import run_processes

Progress = Callable[[int, int, float], None]
"""Called with the clips finished, the clips to extract, and the seconds used of the clip just finished."""


@dataclass(kw_only=True)
class ExtractSummary:
    """What a run did.

    Attributes:
        cache: its path.
        written: number of clips.
        present: clips that the cache already held, or that another process wrote meanwhile.
        seconds: length of the media that were extracted, before the cut.
        failures: the clips that could not be extracted.
        failures_file: lists the failures.
        tracks: clips whose files have several audio tracks, and which track was used.
        truncated: clips that were used although their files are cut off.
        truncated_file: lists these clips.
        missing: clips that have rows in which nothing was found, such as no face.
        others: clips that show other people than the one whose face was taken.
        remarks: clips of which there is something else to know.
        changed: ids of clips whose media changed after they were extracted, and that were not extracted again.
        stats: time per stage.
        notes: sentences for the user.
    """

    cache: str
    written: int = 0
    present: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None
    tracks: list[Note] = field(default_factory=list)
    truncated: list[Note] = field(default_factory=list)
    truncated_file: Path | None = None
    missing: list[Note] = field(default_factory=list)
    others: list[Note] = field(default_factory=list)
    remarks: list[Note] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    stats: PipelineStats = field(default_factory=PipelineStats)
    notes: list[str] = field(default_factory=list)

    def add(self, seconds: float, remark: Failure | Note | None) -> None:
        """Count a clip. List it at once if its file is cut off: after a kill the clip is not tried again."""
        if isinstance(remark, Failure):
            self.failures.append(remark)
            return
        self.written += 1
        self.seconds += 0.0 if math.isnan(seconds) else seconds
        if remark and remark.track:
            self.tracks.append(remark)
        if remark and remark.missing:
            self.missing.append(remark)
        if remark and remark.others:
            self.others.append(remark)
        if remark and remark.remark:
            self.remarks.append(remark)
        if remark and remark.cut_off:
            self.truncated.append(remark)
            self.truncated_file = write_truncated(self.cache, [remark], [remark.id])


def extract(
    media: StrPath,
    cache: StrPath,
    settings: ExtractSettings | None = None,
    *,
    on_plan: Callable[[ExtractPlan], None] | None = None,
    on_progress: Progress | None = None,
    stats: PipelineStats | None = None,
) -> ExtractSummary:
    """Extract the features of all media that the cache lacks. Files that cannot be read are listed, not raised.

    Interrupted at any moment, the cache keeps what was committed, and the same call resumes there.

    Args:
        media: folder, CSV or list; see `extract.sources.find_media`.
        cache: `NAME.zarr` or `NAME.h5`, created where missing.
        settings: how to extract.
        on_plan: called once, before the work starts.
        on_progress: called after each clip.
        stats: filled during the run.

    Raises:
        EmiError: see `extract.plan.plan`; nothing was written then.
    """
    settings = settings or ExtractSettings()
    planned = plan(media, cache, settings)
    if on_plan:
        on_plan(planned)
    summary = ExtractSummary(
        cache=os.fspath(cache),
        present=len(planned.present),
        changed=[id for id in planned.changed if id not in planned.refresh],
        stats=stats or PipelineStats(),
    )
    if not planned.todo:
        seal(cache)
        return summary
    tried: set[str] = set()

    def on_result(id: str, seconds: float, remark: Failure | Note | None) -> None:
        tried.add(id)
        summary.add(seconds, remark)
        if on_progress:
            on_progress(len(tried), planned.todo, settings.used(seconds))

    try:
        summary.notes = _run(planned, settings, summary.cache, summary.stats, on_result)
    finally:
        summary.failures_file = write_failures(summary.cache, summary.failures, {*planned.present, *tried})
        used = tried - {failure.id for failure in summary.failures}
        summary.truncated_file = write_truncated(summary.cache, summary.truncated, used)
    summary.present += planned.todo - len(tried)  # another process wrote the others meanwhile
    if planned.identity.note:
        summary.notes = [planned.identity.note, *summary.notes]
    return summary


def _run(
    plan: ExtractPlan, settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult
) -> list[str]:
    """Extract with Ray, with several processes or in this one; return sentences for the user."""
    work = plan, settings, cache, stats, on_result
    if settings.engine == "ray":
        from extract.workers.ray_engine import run_ray

        return run_ray(*work)
    if (processes := settings.resolved_processes()) > 1 and not single_process_reason(cache):
        with CacheWriter(cache, plan.header):
            pass  # create the cache once, before several processes open it
        return run_processes(*work, processes)
    from extract.clips import fill  # which imports torch

    fill(*work)
    return []
