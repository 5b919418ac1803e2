"""`emi extract`: media into a feature cache."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cache.settings import take
from emi.cli import options
from emi.cli.messages import (
    first_of,
    row_clock,
    tell_left_out,
    tell_licence,
    tell_missing,
    tell_notes,
    tell_others,
    tell_some,
)
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extract.plan import ExtractPlan
    from extract.run import ExtractSummary

IN_PART = ("truncated", "damaged", "two files in one")
"""Reasons of failures that `--allow-truncated` passes over."""


@options.takes(ExtractSettings)
def extract(
    media: Annotated[
        str, typer.Argument(help="Folder (searched recursively), CSV with a Filename column, or text list.")
    ],
    cache: Annotated[str, typer.Option(help="Feature cache to fill: NAME.zarr or NAME.h5.")],
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be done and what it would take, and write nothing.")
    ] = False,
    given: options.Given,
) -> None:
    """Turn media into a feature cache. Run it again to resume where it stopped.

    Files that cannot be read are listed in failures.csv beside the cache, the others are extracted, and the exit code
    is 1. Files that --allow-truncated uses in part are listed in truncated.csv.

    Example: emi extract clips/ --cache features.zarr --backbone audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim
    """
    from emi.console import Progress
    from extract import run
    from extract.plan import plan
    from extract.stats import PipelineStats

    settings, stats, started = take(ExtractSettings, given), PipelineStats(), time.monotonic()
    tell_licence(settings.backbone)
    if dry_run:
        from extract.estimate import estimate  # loads torch, which finished work does not need

        planned = plan(media, cache, settings)
        _show_plan(planned, cache, settings)
        tell_left_out(planned.left_out)
        _show_changed(planned.changed, refresh=settings.refresh)
        typer.echo(estimate(planned, settings).text())
        return
    progress = Progress("extracting", stats.waiting)
    with contextlib.ExitStack() as shown:

        def on_plan(planned: "ExtractPlan") -> None:
            tell_left_out(planned.left_out)
            if planned.refresh:
                _show_changed(planned.changed, refresh=True)
            if planned.todo:
                _show_plan(planned, cache, settings)
                shown.enter_context(progress)

        summary = run.extract(media, cache, settings, on_plan=on_plan, on_progress=progress, stats=stats)
    _show_summary(summary, time.monotonic() - started)
    tell_notes([*summary.tracks, *summary.truncated, *summary.remarks], summary.truncated_file)
    tell_missing(summary.missing)
    tell_others(summary.others, settings.face)
    _show_changed(summary.changed, refresh=False)
    if summary.failures:
        raise typer.Exit(1)


def _show_plan(plan: "ExtractPlan", cache: str, settings: ExtractSettings) -> None:
    header, made = plan.header, plan.header.fingerprint
    vad = f" and {', '.join(header.vad_names)}" if header.vad_names else ""
    cut = "whole clips" if settings.max_seconds is None else f"first {settings.max_seconds:g} s of each clip"
    typer.echo(
        f"{len(plan.sources)} clips, {plan.todo} to do -> {cache}\n"
        f"{made['backbone']}: {header.dim} features{vad} {row_clock(header.hop_seconds)}, {cut}\n"
        f"{made['precision']} on {settings.resolved_device().type} ({plan.precision_reason}), stored as "
        f"{made['dtype']}; weights: {plan.identity.licence}"
    )


def _show_changed(changed: "Sequence[str]", *, refresh: bool) -> None:
    if changed:
        clips = "1 clip has" if len(changed) == 1 else f"{len(changed)} clips have"
        what = "extracted again" if refresh else "not extracted again without --refresh"
        typer.echo(f"{clips} other media than in the cache ({first_of(changed)}): {what}", err=True)


def _show_summary(summary: "ExtractSummary", elapsed: float) -> None:
    for note in summary.notes:
        typer.echo(note, err=True)
    there = f"; {summary.present} were there" if summary.present else ""
    if not summary.written and not summary.failures:
        no_clips = "this share holds no clips; there are fewer windows of clips than shares"
        typer.echo(f"nothing to do: {f'all {summary.present} clips are in {summary.cache}' if there else no_clips}")
        return
    minutes, stats = f"{summary.seconds / 60:.1f} min of media", summary.stats
    typer.echo(f"wrote {summary.written} clips ({minutes}) to {summary.cache} in {elapsed:.1f} s{there}")
    share = 100 * stats.padding / max(1, stats.computed + stats.padding)
    typer.echo(f"waited for: {stats.waiting()}" + (f"; padding {share:.1f} % of the batches" if share else ""))
    if stats.halved_to is not None:
        typer.echo(
            f"memory ran out: batches were halved to {stats.halved_to:.0f} s of media; --batch-seconds "
            f"{stats.halved_to:.0f} spares the attempts next time",
            err=True,
        )
    listed = [f"{failure.path or failure.id}: {failure.reason}" for failure in summary.failures]
    tell_some(f"{len(listed)} clips could not be read (also in {summary.failures_file})", listed)
    if any(word in failure.reason for failure in summary.failures for word in IN_PART):
        typer.echo("--allow-truncated uses files that are cut off or damaged as far as they decode", err=True)
