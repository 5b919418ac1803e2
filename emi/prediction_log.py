"""Predictions on the disk while they come, so that a command that was killed goes on where it stopped."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from cache.paths import StrPath, readable
from cache.sources import size_and_time
from cache.system.atomic_file import write_atomically
from extract.sources import Source
from train_head.data.labels import FILENAME
from train_head.runs.load import is_centred, members_of
from train_head.runs.run_folder import BEST, CONFIG
from train_head.runs.smoothing import FILE as SMOOTHING

Record = dict[str, Any]


class PredictionLog(AbstractContextManager["PredictionLog"]):
    """A file `NAME.partial` beside a table of predictions: a line that says what predicts, then one per clip, in JSON.

    A clip counts as done if its file has the size and the time of change that it had then. A log of another model is
    begun anew.

    Nothing is written where the table is no file, but the screen or a pipe.

    Args:
        table: where the predictions will be; None for the screen.
        model: says what predicts; equal for equal predictions.
        sources: the clips.

    Attributes:
        records: of the clips that are done, by id.
        place: the file; None where nothing is written.
    """

    def __init__(self, table: Path | None, model: str, sources: Sequence[Source]) -> None:
        self.records: dict[str, Record] = {}
        self.place: Path | None = None
        self._file: TextIO | None = None
        if table is None or (table.exists() and not table.is_file()):
            return
        self.place = table.with_name(f"{table.name}.partial")
        self._states = {source.id: _state(source) for source in sources}
        head = json.dumps({"model": model})
        lines = self.place.read_text(errors="replace").splitlines() if self.place.is_file() else []
        if lines[:1] == [head]:
            self._read(lines[1:])
        self.place.parent.mkdir(parents=True, exist_ok=True)
        known = [json.dumps([self._states[clip], record]) for clip, record in self.records.items()]
        write_atomically(self.place, "".join(f"{line}\n" for line in (head, *known)).encode())

    def add(self, record: Record) -> None:
        """Write a prediction down."""
        self.records[record[FILENAME]] = record
        if self._file is not None:
            self._file.write(f"{json.dumps([self._states[record[FILENAME]], record])}\n")
            self._file.flush()

    def remove(self) -> None:
        """Remove the file, once the table is written."""
        if self.place is not None:
            self.place.unlink(missing_ok=True)

    def __enter__(self) -> "PredictionLog":
        if self.place is not None:
            self._file = self.place.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, lines: Sequence[str]) -> None:
        for line in lines:
            try:
                state, record = json.loads(line)
                known = self._states.get(record[FILENAME])
            except (ValueError, LookupError, TypeError):  # the last line of a process that was killed
                continue
            if known is not None and known == state:
                self.records[record[FILENAME]] = record


def _state(source: Source) -> list[Any] | None:
    """Return the path, size and time of change of a clip's file, and of its video; None where one cannot be read."""
    paths = [source.path] if source.video is None else [source.path, source.video]
    try:
        return [part for path in paths for part in (readable(str(path.resolve())), *size_and_time(path))]
    except OSError:
        return None


def model_digest(run: StrPath) -> str:
    """Return a hash of the settings and weights of a run, or of all runs of an ensemble."""
    digest = hashlib.sha256(b"centred" if is_centred(Path(run)) else b"")
    for folder, weight in members_of(Path(run)):
        digest.update(f"{weight!r}\n".encode())
        for name in (CONFIG, BEST, SMOOTHING):
            digest.update((folder / name).read_bytes() if name != SMOOTHING or (folder / name).is_file() else b"")
    return digest.hexdigest()
