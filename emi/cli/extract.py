"""`emi extract`: media into a feature cache."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated

import typer

from cache.settings import take
from emi.cli import options
from emi.cli.media_notes import first_of, tell_left_out, tell_notes
from extract.settings import ExtractSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from extract.plan import ExtractPlan
    from extract.run import ExtractSummary

EXAMPLE = (
    "Example: emi extract clips/ --cache features.zarr --backbone audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"
)
FAILURES_SHOWN = 20
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
        bool, typer.Option("--dry-run", help="Say what would be done and what it would take, and write nothing.")
    ] = False,
    given: options.Given,
) -> None:
    """Turn media into a feature cache. Run it again to resume where it stopped.

    Files that cannot be read are listed in failures.csv beside the cache, the others are extracted, and the exit code
    is 1. Files that --allow-truncated uses in part are listed in truncated.csv.
    """
    from emi.cli.weights import tell_licence
    from extract.estimate import estimate
    from extract.plan import plan

    settings = take(ExtractSettings, given)
    tell_licence(settings.backbone)
    if dry_run:
        planned = plan(media, cache, settings)
        _show_plan(planned, cache, settings.resolved_device().type)
        tell_left_out(planned.left_out)
        _show_changed(planned.changed, refresh=settings.refresh)
        typer.echo(estimate(planned, settings).text())
        return
    started = time.monotonic()
    summary = _extract(media, cache, settings)
    _show_summary(summary, time.monotonic() - started)
    tell_notes([*summary.tracks, *summary.truncated], summary.truncated_file)
    _show_changed(summary.changed, refresh=False)
    if summary.failures:
        raise typer.Exit(1)


def _extract(media: str, cache: str, settings: ExtractSettings) -> "ExtractSummary":
    """Extract, and show what is planned and how far it is."""
    from emi.console import Progress
    from extract import run
    from extract.stats import PipelineStats

    stats = PipelineStats()
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []

        def on_plan(plan: "ExtractPlan") -> None:
            tell_left_out(plan.left_out)
            if plan.refresh:
                _show_changed(plan.changed, refresh=True)
            if plan.todo:
                _show_plan(plan, cache, settings.resolved_device().type)
                shown.append(stack.enter_context(Progress(plan.todo, "extracting", stats.waiting)))

        def on_progress(done: int, total: int, seconds: float) -> None:
            for progress in shown:
                progress(done, total, seconds)

        return run.extract(media, cache, settings, on_plan=on_plan, on_progress=on_progress, stats=stats)


def _show_plan(plan: "ExtractPlan", cache: str, device: str) -> None:
    header = plan.header
    vad = f" and {', '.join(header.vad_names)}" if header.vad_names else ""
    typer.echo(
        f"{len(plan.sources)} clips, {plan.todo} to do -> {cache}\n"
        f"{header.fingerprint['backbone']}: {header.dim} features{vad} every {1000 * header.hop_seconds:g} ms, first "
        f"{header.fingerprint['max_seconds']:g} s of each clip\n"
        f"{header.fingerprint['precision']} on {device} ({plan.precision_reason}), stored as "
        f"{header.fingerprint['dtype']}; weights: {plan.identity.licence}"
    )


def _show_changed(changed: "Sequence[str]", *, refresh: bool) -> None:
    if changed:
        clips = "1 clip has" if len(changed) == 1 else f"{len(changed)} clips have"
        what = "extracted again" if refresh else "not extracted again without --refresh"
        typer.echo(f"{clips} other media than in the cache ({first_of(changed)}): {what}", err=True)


def _show_summary(summary: "ExtractSummary", elapsed: float) -> None:
    for note in summary.notes:
        typer.echo(note, err=True)
    if not summary.written and not summary.failures:
        typer.echo(
            f"nothing to do: all {summary.present} clips are in {summary.cache}"
            if summary.present
            else "nothing to do: this share holds no clips; there are fewer windows of clips than shares"
        )
        return
    typer.echo(
        f"wrote {summary.written} clips ({summary.seconds / 60:.1f} min of audio) to {summary.cache} in {elapsed:.1f} s"
        + (f"; {summary.present} were there" if summary.present else "")
    )
    stats = summary.stats
    typer.echo(
        f"waited for: {stats.waiting()}"
        + (
            f"; padding {100 * stats.padding / (stats.samples + stats.padding):.1f} % of the batches"
            if stats.padding
            else ""
        )
    )
    if stats.halved_to is not None:
        typer.echo(
            f"memory ran out: batches were halved to {stats.halved_to:.0f} s of audio; --batch-seconds "
            f"{stats.halved_to:.0f} spares the attempts next time",
            err=True,
        )
    if summary.failures:
        typer.echo(f"{len(summary.failures)} clips could not be read (also in {summary.failures_file}):", err=True)
        for failure in summary.failures[:FAILURES_SHOWN]:
            typer.echo(f"  {failure.path or failure.id}: {failure.reason}", err=True)
        if len(summary.failures) > FAILURES_SHOWN:
            typer.echo(f"  … and {len(summary.failures) - FAILURES_SHOWN} more", err=True)
        if any(word in failure.reason for failure in summary.failures for word in IN_PART):
            typer.echo("--allow-truncated uses files that are cut off or damaged as far as they decode", err=True)
