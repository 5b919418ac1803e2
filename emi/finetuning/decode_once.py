"""Decode clips once into a folder, which every process and every run reads.

An index (JSON) gives the place of each clip in a file of their content, and the media file's path, size and time of
change. The content has a random name, and the index is replaced once it is whole: a folder that is in use keeps its
file, and one whose decoding was killed is as before.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock

from cache.paths import StrPath, readable
from cache.system.atomic_file import write_atomically
from cache.system.machine import available_cores
from extract.errors import MediaError
from extract.failures import Failure, Note, write_failures, write_truncated
from extract.modality.decoding import Decoders
from extract.modality.protocol import Item, Modality
from extract.settings import DecodeOptions
from extract.sources import Source

OnProgress = Callable[[int, int, float], None]
"""Called after each clip with clips done, of how many, and its seconds."""


class Writer(Protocol):
    """Writes the content of clips, one after another."""

    def append(self, item: Any, source: Source) -> dict[str, Any]:
        """Write a clip; return what the index says of it."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the clips of a modality lie in a folder.

    Attributes:
        modality: of the clips.
        content: name of the file of their content, with a place for the random part.
        index: name of the index.
        lock: name of the lock.
        ahead: clips that are decoded ahead of the one being written.
        processes_from: number of clips from which processes decode.
    """

    modality: Modality
    content: str
    index: str
    lock: str
    ahead: int
    processes_from: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which clips are wanted, and how they are decoded.

    Attributes:
        sources: the clips.
        max_seconds: cut of each; None takes whole clips.
        options: what of each file is decoded.
        recipe: everything that changes what is written.
    """

    sources: Sequence[Source]
    max_seconds: float | None
    options: DecodeOptions
    recipe: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Where clips lie in their content.

    Attributes:
        starts: by clip id, its first sample or row.
        lengths: by clip id, its samples or rows.
        checksums: by clip id, CRC-32C of everything that a backbone gets of it.
        failures: the clips that could not be read.
        notes: what the user should know about files that were used: which of several tracks, cut off.
    """

    starts: Mapping[str, int]
    lengths: Mapping[str, int]
    checksums: Mapping[str, int]
    failures: Sequence[Failure]
    notes: Sequence[Note] = ()

    def sha256(self, clips: Iterable[str]) -> str:
        """Return a hash of the content of some clips."""
        lines = (f"{clip} {self.lengths[clip]} {self.checksums[clip]}\n" for clip in clips)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an index says of the clips that were asked for.

    Attributes:
        content: path of the content.
        clips: by id, what the writer said of each.
        failures: the clips that could not be read.
        notes: what the user should know about files that were used.
    """

    content: Path
    clips: Mapping[str, Mapping[str, Any]]
    failures: Sequence[Failure]
    notes: Sequence[Note]

    def decoded(self, length: str) -> dict[str, Any]:
        """Return the fields of `Decoded`; `length` is the writer's word for it."""
        keys = {"starts": "start", "lengths": length, "checksums": "crc32c"}
        places = {field: {clip: entry[key] for clip, entry in self.clips.items()} for field, key in keys.items()}
        return {**places, "failures": self.failures, "notes": self.notes}


def find_decoded(folder: StrPath, layout: Layout, request: Request) -> Found | None:
    """Read the index of these clips; None if there is none, or a file has changed since."""
    place = Path(folder)
    try:
        index = json.loads((place / layout.index).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    if not isinstance(index, dict) or index.get("recipe") != request.recipe:
        return None
    clips, failed = index["clips"], index["failures"]
    known = {**failed, **clips}
    if any(known.get(source.id, {}).get("file") != _identity(source) for source in request.sources):
        return None
    return Found(
        content=place / index["samples"],
        clips=clips,
        failures=[
            Failure(s.id, readable(str(s.path)), failed[s.id]["reason"]) for s in request.sources if s.id in failed
        ],
        notes=[
            Note(s.id, readable(str(s.path)), **clips[s.id]["note"])
            for s in request.sources
            if "note" in clips.get(s.id, {})
        ],
    )


def decode_once(
    folder: StrPath,
    layout: Layout,
    request: Request,
    is_whole: Callable[[], bool],
    writer: Callable[[Path], AbstractContextManager[Writer]],
    on_progress: OnProgress | None = None,
) -> None:
    """Decode the clips into the folder, in place of what is there.

    One process at a time; another that waits for the same clips finds them done. Clips that cannot be read are listed
    in failures.csv beside the content, those used in part in truncated.csv; the content holds the others.

    Args:
        folder: made where missing.
        layout: of the folder.
        request: which clips.
        is_whole: whether the folder holds all of them now.
        writer: opens a file for their content.
        on_progress: hears of each clip.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place / layout.lock):
        if not is_whole():
            _decode_locked(place, layout, request, writer, on_progress)


def mended(failures: Sequence[Failure], layout: Layout, request: Request) -> bool:
    """Return whether a clip that could not be read can be read now: the file may not have been the reason."""
    read, places = layout.modality.reader(), {source.id: source for source in request.sources}
    for source in (places[failure.id] for failure in failures):
        if source.problem:  # of its name, which reading it does not show
            continue
        with contextlib.suppress(MediaError, OSError, MemoryError):
            read(source, request.max_seconds, request.options)
            return True
    return False


def _decode_locked(
    place: Path,
    layout: Layout,
    request: Request,
    writer: Callable[[Path], AbstractContextManager[Writer]],
    on_progress: OnProgress | None,
) -> None:
    clips: dict[str, Any] = {}
    failed: dict[str, Any] = {}
    failures: list[Failure] = []
    notes: list[Note] = []
    files = {source.id: _identity(source) for source in request.sources}  # before they are read: they may change then
    old = {*place.glob(layout.content.format("*")), *place.glob(layout.content.format("*") + ".*")}
    name = layout.content.format(os.urandom(4).hex())
    with writer(place / f"{name}.tmp") as content:
        for done, (source, decoded) in enumerate(_decoded(layout, request), 1):
            result, seconds = _appended(content, source, decoded), 0.0
            if isinstance(result, Failure):
                failures.append(result)
                failed[source.id] = {"file": files[source.id], "reason": result.reason}
            else:
                seconds = min(request.max_seconds or decoded.seconds, decoded.seconds)
                clips[source.id] = {"file": files[source.id]} | result
                note = Note(source.id, readable(str(source.path)), decoded.track, decoded.cut_off, 0.0, decoded.remark)
                if not note.empty:
                    notes.append(note)
                    said = {"track": note.track, "cut_off": note.cut_off, "remark": note.remark}
                    clips[source.id] |= {"note": {key: text for key, text in said.items() if text}}
            if on_progress:
                on_progress(done, len(request.sources), seconds)
    os.replace(place / f"{name}.tmp", place / name)
    content_of = {"recipe": request.recipe, "samples": name, "clips": clips, "failures": failed}
    write_atomically(place / layout.index, json.dumps(content_of).encode())
    for path in old:
        path.unlink(missing_ok=True)
    write_failures(str(place / name), failures, {*clips, *failed})
    write_truncated(str(place / name), notes, {*clips, *failed})


def _appended(content: Writer, source: Source, decoded: Item | Failure) -> dict[str, Any] | Failure:
    """Write a clip; a long one is read here, and may fail as others do when they are decoded."""
    if isinstance(decoded, Failure):
        return decoded
    try:
        return content.append(decoded, source)
    except MediaError as error:
        return Failure(source.id, readable(str(source.path)), str(error))


def _decoded(layout: Layout, request: Request) -> Iterator[tuple[Source, Any]]:
    """Yield each source with its item or failure, in order; a few are decoded ahead."""
    sources = request.sources
    with Decoders(
        layout.modality,
        available_cores(),
        request.max_seconds,
        request.options,
        in_processes=len(sources) >= layout.processes_from,
    ) as decoders:
        submitted = map(decoders.submit, sources)  # lazy: at most `ahead` + 1 clips wait
        ahead = list(itertools.islice(submitted, layout.ahead))
        for source in sources:
            ahead.extend(itertools.islice(submitted, 1))
            yield source, ahead.pop(0).result()


def _identity(source: Source) -> list[Any]:
    """Return what changes when a file does, or an image in a folder is added, removed or written anew."""
    return [part for path in (source.path, source.video) if path is not None for part in _stat(path)]


def _stat(path: Path) -> list[Any]:
    try:
        stats = [path.stat(), *((entry.stat() for entry in os.scandir(path)) if path.is_dir() else ())]
    except OSError:
        return [str(path.absolute()), -1, -1]
    size = stats[0].st_size if len(stats) == 1 else sum(stat.st_size for stat in stats[1:])
    return [str(path.absolute()), size, max(stat.st_mtime_ns for stat in stats)]
