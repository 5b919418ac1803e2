"""What the commands that train print while runs proceed and when they are done; loads torch, so import it late."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from emi.cli.messages import tell_notes
from extract.failures import Note
from train_head.data.label_format import LabelFormat
from train_head.protocols import Ablation, EnsembleResult, Outcome, ProtocolResult, StreamAblation
from train_head.reports.progress import EpochLines
from train_head.reports.trackers import Trackers
from train_head.runs.inputs import LabelFiles
from train_head.training.loop import Record, Reporter
from train_head.training.settings import TrainSettings

if TYPE_CHECKING:
    from emi.paper_table.result import Table1
    from train_head.sweep.result import SweepResult


def label_files(
    train: Path,
    valid: Path | None,
    test: Path | None = None,
    *,
    form: LabelFormat,
    skip_missing: bool,
    require: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    quiet: bool = False,
) -> LabelFiles:
    """Name the label files of a training, and print what is trained on: the targets, and the ignored columns.

    Raises:
        LabelError: the file of the training split is wrong.
    """
    files = LabelFiles.named(
        train, valid, test, format=form, skip_missing=skip_missing, require=require or (), ids=ids or ()
    )
    if quiet:
        return files
    labels = LabelFiles.named(train, format=form).read()["train"]
    typer.echo(f"targets: {', '.join(labels.names)}; ignored: {', '.join(labels.ignored) or 'none'}")
    missing = int((labels.values != labels.values).sum())
    if missing:
        typer.echo(f"{missing} of {labels.values.size} training labels are missing, and count nowhere", err=True)
    if labels.unlabelled:
        typer.echo(f"{labels.unlabelled} clips of {train} were left out because they have no label", err=True)
    return files


def left_out(require: Sequence[str] | None, why: str = "no cache holds them") -> str:
    """Return why labelled clips were left out of a training: `why`, or they lack a required stream."""
    return why + (f", or they lack {' or '.join(require)}" if require else "")


class TrainingOutput(Reporter):
    """Prints a heading per run where there are several, and one line per epoch.

    Args:
        decoding: hears of decoded clips.
        trackers: get the epochs of each run.
    """

    def __init__(
        self, decoding: Callable[[int, int, float], None] | None = None, trackers: Trackers | None = None
    ) -> None:
        self._decoding, self._trackers = decoding, trackers or Trackers("", ())
        self._lines = EpochLines(0, typer.echo)
        self._noted: set[str] = set()

    def row_started(self, name: str) -> None:
        """See `Reporter`."""
        typer.echo(f"row {name}")

    def run_started(self, name: str, folder: Path, settings: TrainSettings) -> None:
        """See `Reporter`."""
        self._lines = EpochLines(settings.stop_after or settings.epochs, typer.echo)
        self._trackers.move(folder)
        if name:
            typer.echo(f"{name}:")

    def epoch_finished(self, record: Record) -> None:
        """See `Reporter`."""
        self._lines(record)
        self._trackers(record)

    def step_finished(self, epoch: int, what: str, done: int, total: int) -> None:
        """See `Reporter`."""
        self._lines.on_step(epoch, what, done, total)

    def note(self, text: str) -> None:
        """See `Reporter`; a sentence is printed once."""
        if text not in self._noted:
            typer.echo(text, err=True)
        self._noted.add(text)

    def clip_decoded(self, done: int, total: int, seconds: float) -> None:
        """See `Reporter`."""
        if self._decoding is not None:
            self._decoding(done, total, seconds)

    def media_notes(self, notes: Sequence[Note]) -> None:
        """See `Reporter`."""
        tell_notes(notes)


def print_table(
    result: "Ablation | EnsembleResult | StreamAblation | SweepResult | Table1",
    out: Path,
    hint: str = "",
    *,
    skipped: int = 0,
    missing: str = "",
) -> None:
    """Print the table of several runs, and before it that nothing was to do, or that clips were left out.

    Args:
        result: what was made.
        out: its folder.
        hint: what to do where nothing was to do.
        skipped: the number of labelled clips that were left out.
        missing: why.
    """
    if result.nothing_to_do:
        typer.echo(f"nothing to do: {out} is finished{hint}")
    if skipped:
        typer.echo(f"{skipped} labelled clips were left out because {missing}", err=True)
    typer.echo(result.table())


def print_outcome(outcome: Outcome, out: Path, missing: str) -> None:
    """Print the scores of the runs of a training.

    Args:
        outcome: what was made.
        out: run folder, or the folder of the runs.
        missing: why labelled clips were left out.
    """
    result, on_all = outcome.result, outcome.on_all
    if outcome.nothing_to_do:
        typer.echo(f"nothing to do: {result.folder if outcome.missing_folds else out} is finished")
    if result.skipped:
        typer.echo(f"{result.skipped} labelled clips were left out because {missing}", err=True)
    if isinstance(result, ProtocolResult):
        typer.echo(result.table())
    else:
        if result.overlap:
            typer.echo(result.overlap, err=True)
        typer.echo(f"validation, best epoch {result.best_epoch}:\n{result.report.table()}")
        if result.smoothing:
            typer.echo(result.smoothing.sentence("valid"))
        if result.agreement:
            typer.echo(result.agreement.table(result.report))
        if result.test_report:
            typer.echo(f"test:\n{result.test_report.table()}")
    if on_all is not None:
        numbers = ", ".join(map(str, on_all.epochs))
        typer.echo(f"trained on all clips for {numbers} epochs, without validation: {on_all.folder}")
        if on_all.test_report:
            typer.echo(f"test, trained on all clips:\n{on_all.test_report.table()}")
    if outcome.missing_folds:
        typer.echo(
            f"folds still missing: {', '.join(map(str, outcome.missing_folds))}; train each with --only-fold K, or "
            "all with the same command without it; the last to finish joins the folds"
        )
    typer.echo(f"run folder: {out}")
