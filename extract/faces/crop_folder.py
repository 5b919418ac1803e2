"""Write the face of each clip as PNG crops that a person can look at, and that are clips themselves.

`OUT/<id>/00001.png` is row 1 of a clip; rows without a face have no file. `OUT/<id>/faces.csv` is written last, so a
clip that has it is whole. Features of the crops are those of the video, as PNG loses nothing.
"""

import csv
import itertools
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cache.paths import readable
from cache.system.atomic_file import replacing, write_atomically
from cache.system.machine import available_cores
from extract.clips import make_decoders
from extract.errors import ExtractSettingsError, MediaError
from extract.faces.crop_table import COLUMNS, RECORD, TABLE, crop_name, is_crop_table
from extract.faces.reading import FaceCrops
from extract.failures import FAILURES, Failure, Note, write_failures
from extract.modality.registry import MODALITIES
from extract.settings import ExtractSettings
from extract.sources import Source, find_media
from extract.threads import one_thread_per_operation


@dataclass(kw_only=True)
class CropsSummary:
    """What was written.

    Attributes:
        ids: of all clips in the folder that were asked for, sorted.
        written: number of clips.
        crops: number of images of these.
        present: number of clips that were there.
        missing: clips with rows without a face.
        others: clips that show other people than the one whose face was taken.
        failures: clips that could not be read.
        failures_file: lists the failures.
    """

    ids: list[str] = field(default_factory=list)
    written: int = 0
    crops: int = 0
    present: int = 0
    missing: list[Note] = field(default_factory=list)
    others: list[Note] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    failures_file: Path | None = None


def write_faces(
    media: str, out: Path, settings: ExtractSettings, on_progress: Callable[[int, int, float], None]
) -> CropsSummary:
    """Write the crops of all clips that the folder lacks, and the table `faces.csv` of all.

    Args:
        media: see `find_media`; videos only.
        out: folder, created where missing.
        settings: `fps`, `face`, `min_face`, `detect_every`, `max_seconds`, `media_root`, `workers`, `allow_truncated`.
        on_progress: called after each clip with clips done, of how many, and its seconds.

    Raises:
        MediaListError: the media cannot be listed.
        ExtractSettingsError: the folder holds faces that were made with other settings, or pictures of another program
            where crops would be written.
    """
    sources = find_media(media, settings.media_root)
    _check_record(out, sources, settings)
    todo = [source for source in sources if not _is_done(out, source)]
    summary = CropsSummary(present=len(sources) - len(todo))
    for number, (source, item) in enumerate(_decoded(todo, settings), 1):
        if isinstance(item, Failure):
            summary.failures.append(item)
            on_progress(number, len(todo), 0.0)
            continue
        try:
            _write_clip(out, source, item, settings)
        except MediaError as error:  # of a long video, which is read here
            summary.failures.append(Failure(source.id, readable(str(source.path)), readable(str(error))))
            on_progress(number, len(todo), 0.0)
            continue
        summary.written += 1
        summary.crops += int(item.valid.sum())
        share = 1 - float(item.valid.mean())
        note = Note(source.id, readable(str(source.path)), missing=share, others=item.others)
        summary.missing += [note] if note.missing else []
        summary.others += [note] if note.others else []
        on_progress(number, len(todo), settings.used(item.seconds))
    tried = [source.id for source in sources]
    summary.failures_file = write_failures(str(out), summary.failures, tried, out / FAILURES)
    summary.ids = [source.id for source in sources if (out / source.id / TABLE).is_file()]
    _join_tables(out)
    return summary


def _is_done(out: Path, source: Source) -> bool:
    """Return whether the crops of a clip were written after its video last changed."""
    table = out / source.id / TABLE
    try:
        return table.stat().st_mtime_ns >= source.path.stat().st_mtime_ns
    except OSError:
        return table.is_file()


def _check_record(out: Path, sources: Sequence[Source], settings: ExtractSettings) -> None:
    """Record how the crops are made, and refuse to mix them with others, or to write over pictures of others."""
    record = dict(MODALITIES["face"].fingerprint(settings))
    out.mkdir(parents=True, exist_ok=True)
    if not (out / RECORD).is_file():
        taken = next((out / source.id for source in sources if any((out / source.id).glob("*.png"))), None)
        if taken is not None:
            raise ExtractSettingsError(f"{taken} holds pictures that emi has not written; choose another --out")
        write_atomically(out / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
        return
    stored: dict[str, Any] = json.loads((out / RECORD).read_text(encoding="utf-8"))
    names = sorted(name for name in {*record, *stored} if record.get(name) != stored.get(name))
    if names:
        differing = "; ".join(f"{name} (there {stored.get(name)}, wanted {record.get(name)})" for name in names)
        raise ExtractSettingsError(f"{out} holds faces that were cut out otherwise: {differing}; choose another --out")


def _decoded(todo: Sequence[Source], settings: ExtractSettings) -> Iterator[tuple[Source, FaceCrops | Failure]]:
    """Yield the clips in order, while a few more are being read."""

    if not todo:
        return
    options, ahead = (settings.max_seconds, settings.decoding), 2 * (settings.workers or available_cores())
    with (
        one_thread_per_operation(),
        make_decoders(MODALITIES["face"], len(todo), settings.workers, *options) as decoders,
    ):
        waiting: deque[tuple[Source, Future[Any]]] = deque()
        sources = iter(todo)
        while True:
            for source in itertools.islice(sources, ahead - len(waiting)):
                waiting.append((source, decoders.submit(source)))
            if not waiting:
                return
            source, future = waiting.popleft()
            yield source, future.result()


def _write_clip(out: Path, source: Source, item: FaceCrops, settings: ExtractSettings) -> None:
    folder = out / source.id
    folder.mkdir(parents=True, exist_ok=True)
    for left in (folder / TABLE, *folder.glob("*.png")):  # of an earlier video, or of a killed process
        left.unlink(missing_ok=True)
    blocks = MODALITIES["face"].record(item, source, settings.decoding) if item.long else [item.images]
    for row, image in enumerate(itertools.chain.from_iterable(blocks)):
        if item.valid[row]:
            Image.fromarray(image).save(folder / crop_name(row))
    with replacing(folder / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer, times = csv.writer(file), _times(item, settings)
        writer.writerow(COLUMNS)
        for row, valid in enumerate(item.valid.tolist()):
            places = [*item.boxes[row].tolist(), *item.landmarks[row].ravel().tolist()]
            found = [f"{place:.2f}" for place in places] if valid else [""] * len(places)
            score, track = (f"{item.scores[row]:.4f}", item.face_track) if valid else ("", "")
            writer.writerow([source.id, row + 1, *map(str, times[row]), *found, score, track, int(valid), item.others])


def _times(item: FaceCrops, settings: ExtractSettings) -> NDArray[np.float32]:
    """Return (rows, 2) start and end of the rows, as a cache holds them; those of a clip without any face are one."""
    if item.times is not None:
        return item.times.astype(np.float32)
    steps = np.arange(len(item.valid) + 1) / (settings.fps or 1)
    if not item.valid.any():
        steps[-1] = max(steps[-1], settings.used(item.seconds))
    return np.stack([steps[:-1], steps[1:]], axis=1).astype(np.float32)


def _join_tables(out: Path) -> None:
    """Write the table of all clips in the folder."""
    tables = sorted(table for table in out.rglob(TABLE) if table.parent != out and is_crop_table(table))
    if not tables:
        return
    with replacing(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)  # an older table has fewer columns
        writer.writeheader()
        for place in tables:
            with place.open(newline="", encoding="utf-8") as table:
                writer.writerows(csv.DictReader(table))
