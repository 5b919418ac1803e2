"""What the commands that train say while runs go on and when they are done."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from types import TracebackType

    from train_head.data.label_format import LabelFormat
    from train_head.protocols import Outcome
    from train_head.reports.progress import EpochLines
    from train_head.training.settings import TrainSettings
    from train_head.training.trainer import Record


def say_labels(train: Path, form: "LabelFormat") -> None:
    """Say before a training what is trained on: the targets, and the columns that are ignored.

    Args:
        train: label CSV of the training split.
        form: how it is read.

    Raises:
        LabelError: the file is wrong.
    """
    from train_head.runs.train import read_split_labels

    labels = read_split_labels({"train": train}, form)["train"]
    typer.echo(f"targets: {', '.join(labels.names)}; ignored: {', '.join(labels.ignored) or 'none'}")
    missing = int((labels.values != labels.values).sum())
    if missing:
        typer.echo(f"{missing} of {labels.values.size} training labels are missing, and count nowhere", err=True)
    if labels.unlabelled:
        typer.echo(f"{labels.unlabelled} clips of {train} were left out because they have no label", err=True)


class RunLines:
    """A heading per run, and one line per epoch; given to a training as `on_epoch` (see `Reporter`)."""

    def __init__(self) -> None:
        self._line: EpochLines | None = None

    def count(self, settings: "TrainSettings") -> None:
        """Begin a run without a heading."""
        from train_head.reports.progress import EpochLines

        self._line = EpochLines(settings.stop_after or settings.epochs, typer.echo)

    def on_run(self, name: str, settings: "TrainSettings") -> None:
        """Begin a run of several."""
        self.count(settings)
        typer.echo(f"{name}:")

    def __call__(self, record: "Record") -> None:
        """Report an epoch of the run that was begun."""
        assert self._line is not None
        self._line(record)

    def on_step(self, epoch: int, what: str, done: int, total: int) -> None:
        """Report a step within an epoch, where it is time for a line."""
        if self._line is not None:
            self._line.on_step(epoch, what, done, total)

    def note(self, text: str) -> None:
        """Report a sentence about the run."""
        typer.echo(text, err=True)


class Telling:
    """One line per epoch, a heading per run where there are several, and TensorBoard's files where asked for.

    Args:
        out: run folder, or the folder of the runs.
        settings: of the first run.
        several: whether runs are announced by name.
        first_in_out: whether the first of several lies in `out` itself.
        tensorboard: write the epochs for TensorBoard too.
    """

    def __init__(
        self, out: Path, settings: "TrainSettings", *, several: bool, first_in_out: bool, tensorboard: bool
    ) -> None:
        from train_head.reports.tensorboard import Board

        self._out, self._first_in_out, self._begun = out, first_in_out, 0
        self._board = Board(out) if tensorboard else None
        self.on_run = self._begin if several else None
        self._lines = RunLines()
        self._lines.count(settings)

    def __call__(self, record: "Record") -> None:
        """Report an epoch."""
        self._lines(record)
        if self._board:
            self._board(record)

    def on_step(self, epoch: int, what: str, done: int, total: int) -> None:
        """Report a step within an epoch."""
        self._lines.on_step(epoch, what, done, total)

    def note(self, text: str) -> None:
        """Report a sentence about the run."""
        self._lines.note(text)

    def outcome(self, outcome: "Outcome", missing: str) -> None:
        """Say what came out.

        Args:
            outcome: what was made.
            missing: why labelled clips were left out.
        """
        from train_head.protocols import ProtocolResult

        result = outcome.result
        if outcome.nothing_to_do:
            place = result.folder if outcome.missing_folds else self._out
            typer.echo(f"nothing to do: {place} is finished")
        if result.skipped:
            typer.echo(f"{result.skipped} labelled clips were left out because {missing}", err=True)
        if isinstance(result, ProtocolResult):
            typer.echo(result.table())
        else:
            if result.overlap:
                typer.echo(result.overlap, err=True)
            typer.echo(f"validation, best epoch {result.best_epoch}:\n{result.report.table()}")
            if result.agreement:
                typer.echo(result.agreement.table(result.report))
            if result.test_report:
                typer.echo(f"test:\n{result.test_report.table()}")
        if outcome.everything is not None:
            numbers = ", ".join(map(str, outcome.everything.epochs))
            typer.echo(f"trained on all clips for {numbers} epochs, without validation: {outcome.everything.folder}")
            if outcome.everything.test_report:
                typer.echo(f"test, trained on all clips:\n{outcome.everything.test_report.table()}")
        if outcome.missing_folds:
            typer.echo(
                f"folds still missing: {', '.join(map(str, outcome.missing_folds))}; train each with --only-fold K, or "
                "all with the same command without it; the last to finish puts the folds together"
            )
        typer.echo(f"run folder: {self._out}")

    def __enter__(self) -> "Telling":
        if self._board:
            self._board.__enter__()
        return self

    def __exit__(
        self, kind: "type[BaseException] | None", error: BaseException | None, trace: "TracebackType | None"
    ) -> None:
        if self._board:
            self._board.__exit__(kind, error, trace)

    def _begin(self, name: str, settings: "TrainSettings") -> None:
        self._begun += 1
        if self._board:
            self._board.move(self._out if self._first_in_out and self._begun == 1 else self._out / name)
        self._lines.on_run(name, settings)
