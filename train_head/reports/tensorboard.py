"""Scalars of each epoch for TensorBoard: `tensorboard --logdir RUN` shows them beside those of other runs."""

import json
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cache.errors import EmiError
from cache.paths import StrPath
from train_head.runs import run_folder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
SCALARS = {
    "train/loss": "train_loss",
    "train/lr": "lr",
    "train/frames_per_second": "frames_per_second",
    "valid/pearson/mean": "valid_mean_pearson",
}
"""Tag to key of an epoch's record; `valid/pearson/<target>` are beside them."""


class BoardDependencyError(EmiError, ImportError):
    """The package tensorboard is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "scalars for TensorBoard need the package 'tensorboard'; install it with: "
            "pip install 'emi-mimicry[tensorboard]'"
        )


class Board:
    """Writes each epoch's record into RUN/tensorboard; give it to a training as `on_epoch`.

    With the first epoch that it is called with, it writes those that metrics.jsonl holds before it and purges what
    earlier files say of them. So a run that was killed, resumed, or first trained without a board has each epoch once.

    Args:
        run: run folder; nothing is created there before the first epoch is done.

    Raises:
        BoardDependencyError: tensorboard is not installed.
    """

    def __init__(self, run: StrPath) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BoardDependencyError from error
        self._make = SummaryWriter
        self._run = Path(run)
        self._writer: SummaryWriter | None = None

    def __call__(self, record: dict[str, Any]) -> None:
        """Write one epoch, and flush."""
        if self._writer is None:
            records = [*self._before(record["epoch"]), record]
            self._writer = self._make(str(self._run / FOLDER), purge_step=records[0]["epoch"])
        else:
            records = [record]
        for each in records:
            self._write(self._writer, each)
        self._writer.flush()

    def move(self, run: StrPath) -> None:
        """Go on with another run, of several in one call."""
        self.close()
        self._run = Path(run)

    def close(self) -> None:
        """Close the file; a later epoch would open another."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _before(self, epoch: int) -> list[dict[str, Any]]:
        path = self._run / run_folder.METRICS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [record for record in map(json.loads, lines) if record["epoch"] < epoch]

    def _write(self, writer: "SummaryWriter", record: dict[str, Any]) -> None:
        values = {tag: record[key] for tag, key in SCALARS.items()}
        values |= {f"valid/pearson/{name}": value for name, value in record["valid_pearson"].items()}
        for tag, value in values.items():
            if value is not None:
                writer.add_scalar(tag, value, record["epoch"])
