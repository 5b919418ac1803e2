"""A feature cache as one HDF5 file, sealed: written whole, once, and never changed in place.

HDF5 has no crash safety: a kill in the middle of its flush leaves a file that may not open again. So a writer of
`NAME.h5` commits Zarr segments into a hidden folder beside it, `.NAME.h5.zarr` (`cache.containers.zarr_group`). When it
ends, all segments, those of the old file and those of the folder, are written to a temporary file, which is flushed and
renamed over `NAME.h5`; then the folder is removed. Adding one clip to a large file therefore copies the whole file
once, at the end of the run, and needs room for both copies; a Zarr cache does not.

Readers see the file and the folder together, and are never locked out. So work that was killed stays readable, and the
same command resumes it. The folder states in its root attribute `appends_to` which file it continues; without the
attribute, it is the beginning of a file that is not there yet. A folder that continues another file, because a copy was
restored over it or because the file was deleted, is no part of the cache: readers ignore it, and the next writer
renames it to `NAME.h5.stopped-<time>.zarr`, a complete cache, and warns. A folder that was sealed by a process that
died before it removed it is ignored too; the next writer removes it where the file has its segments by name.
"""

import errno
import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from cache import fingerprint as fp
from cache.containers.container import NewSegment, SegmentIndex, lock_folder
from cache.containers.old_journal import journal_path
from cache.containers.sealed_file import Parsed, SealedFile, write_sealed
from cache.containers.zarr_group import ZarrContainer
from cache.errors import CacheFormatError, DamagedCacheError
from cache.format import Array, Header, with_checksum
from cache.gather import read_segment
from cache.index import read_segment_index
from cache.system.atomic_file import replacing
from cache.system.disk import measured, sync

APPENDS_TO = "appends_to"
"""Root attribute of the folder: `SealedFile.identity` of the file that it continues."""
_Read = TypeVar("_Read")


class Hdf5Container:
    """See `cache.containers.container.Container`. One process writes at a time, and any number read meanwhile.

    Raises:
        CacheFormatError: the path is a URL.
    """

    one_writer = True
    remote = False

    def __init__(self, path: str) -> None:
        if "://" in path:
            raise CacheFormatError(
                f"{path} is a URL, and HDF5 caches are local files; give the path of one, or name the cache NAME.zarr, "
                "which may be at a URL"
            )
        self.path = path
        self._path = Path(os.path.realpath(path))  # the folder and new files belong beside the file, not beside a link
        self._place = self._path.with_name(f".{self._path.name}.zarr")
        self._removed = self._place.with_suffix(".sealed")
        self._temporary = self._path.with_name(f"{self._path.name}.tmp")
        self._folder = ZarrContainer(str(self._place))
        self._file: SealedFile | None = None
        self._lock: object = None  # held while it is referenced
        self._committed: set[str] = set()

    def read_attributes(self) -> dict[str, Any] | None:
        attributes = self._in_folder(ZarrContainer.read_attributes, None)
        file = self._current()
        return file.attributes if file is not None else attributes

    def create(self, attributes: Mapping[str, Any], extras: Mapping[str, Array]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.lock()
        if self._current() is None:
            self._folder.create(attributes, extras)

    def read_extras(self) -> dict[str, Array]:
        file = self._current()
        return file.read_extras() if file is not None else self._in_folder(ZarrContainer.read_extras, {})

    def lock(self, *, alone: bool = False) -> None:  # noqa: ARG002 - a writer always is
        """Lock the folder, which need not exist, so that a second writer is refused at once."""
        if self._lock is not None:
            return
        self._lock = lock_folder(
            self._place,
            f"{self.path} is being written by another process",
            ", and HDF5 takes one writer; wait for it, or use a .zarr cache, which takes any number",
            alone=True,
        )
        if aside := self._put_aside():
            warnings.warn(
                f"{self._place} holds clips that continue another file than the one that is at {self.path} now; they "
                f"are no part of it, and were put aside as a cache of their own: {aside}",
                stacklevel=2,
            )

    def segment_names(self, known: Collection[str] = ()) -> list[str]:
        # The folder first, since segments move from it to the file.
        names = self._in_folder(lambda folder: folder.segment_names(known), list[str]())
        return sorted({*names, *self._names_in_file()})

    def read_segment(self, name: str) -> Parsed:
        return self._of(name, lambda file: file.read_segment(name), lambda folder: folder.read_segment(name))

    def read_blocks(self) -> list[bytes]:
        blocks = self._in_folder(ZarrContainer.read_blocks, list[bytes]())
        file = self._current()
        return [*blocks, *(file.blocks if file is not None else ())]

    def write_block(self, name: str, block: bytes) -> None:
        self._begin().write_block(name, block)

    def read_into(self, segment: SegmentIndex, array: str, starts: Sequence[int], outs: Sequence[Array]) -> None:
        self._of(
            segment.name,
            lambda file: file.read_into(segment.name, array, starts, outs),
            lambda folder: folder.read_into(segment, array, starts, outs),
        )

    def write_segment(self, segment: NewSegment) -> None:
        self._begin().write_segment(segment)
        self._committed.add(segment.name)

    def rewrite(self, replacements: Sequence[tuple[Collection[str], NewSegment | None]]) -> None:
        self.lock()
        gone = {name for old, _ in replacements for name in old}
        self._committed -= gone
        self._seal([new for _, new in replacements if new is not None], gone)

    def unsealed(self) -> list[str]:
        return sorted({*self._in_folder(ZarrContainer.segment_names, list[str]())} - self._names_in_file())

    def seal(self) -> bool:
        """Write the file anew with the segments of the folder, or an old journal; return whether there was either.

        Raises:
            OSError: there is no room, or no right to write; the file and the folder are as they were.
        """
        self._check_committed()
        journal = journal_path(self._path)
        if not (self._place.exists() or journal.exists()):
            return False
        self.lock()
        if aside := self._put_aside():
            raise OSError(f"another file was put in its place meanwhile; what was committed is in {aside}")
        folder, file = self._continued(), self._current()
        new = folder is not None and (file is None or bool(folder.segment_names()))
        if not new and (file is None or not journal.exists()):
            self._remove_folder()
            return False
        self._seal([], ())
        return True

    def problems(self, segment: SegmentIndex | None = None) -> list[str]:
        """See `ZarrContainer.problems`; HDF5 keeps checksums over its metadata, and refuses what does not match."""
        if segment is not None:
            return self._of(segment.name, lambda _: [], lambda folder: folder.problems(segment))
        return self._in_folder(ZarrContainer.problems, [])

    def stored(self) -> tuple[int, int]:
        files, size = self._in_folder(ZarrContainer.stored, (0, 0))
        return (files + 1, size + self._path.stat().st_size) if self._path.exists() else (files, size)

    def leftovers(self) -> tuple[int, int]:
        """Measure what crashes left: a file or folder that was not yet renamed or removed, unfinished segments."""
        left = [place for place in (self._temporary, self._removed, journal_path(self._path)) if place.exists()]
        if self._place.exists() and self._continued() is None:
            left.append(self._place)
        unfinished = self._in_folder(ZarrContainer.leftovers, (0, 0))
        return len(left) + unfinished[0], sum(measured(place)[1] for place in left) + unfinished[1]

    def close(self) -> None:
        self._file = None
        self._folder.close()
        self._lock = None  # releases it

    def _current(self) -> SealedFile | None:
        """Return the file that is at the path now, or None.

        Raises:
            CacheFormatError: it cannot be read.
        """
        try:
            if self._file is None or not self._file.is_at(self._path):
                self._file = SealedFile(self._path)
        except FileNotFoundError:
            self._file = None
        except PermissionError:
            raise
        except Exception as error:  # HDF5 may raise anything over a file that is not, or no longer, what it wrote
            raise CacheFormatError(
                f"{self.path} cannot be read as HDF5 ({error}); choose another path, or restore it from a copy"
            ) from error
        return self._file

    def _names_in_file(self) -> Set[str]:
        file = self._current()
        return file.names.keys() if file is not None else frozenset()

    def _continued(self) -> ZarrContainer | None:
        """Return the folder if it continues the file at the path, or None."""
        try:
            attributes = self._folder.read_attributes()
        except CacheFormatError as error:
            raise CacheFormatError(
                f"{self._place}, which holds unfinished work on {self.path}, cannot be read ({error}); remove that "
                "folder to return to the file without that work"
            ) from error
        if attributes is None:
            return None
        file = self._current()
        return self._folder if attributes.get(APPENDS_TO) == (file and file.identity()) else None

    def _in_folder(self, read: Callable[[ZarrContainer], _Read], nothing: _Read) -> _Read:
        """Read from the folder; `nothing` where there is none that counts, or where it is sealed meanwhile."""
        try:
            folder = self._continued()
            return nothing if folder is None else read(folder)
        except Exception:
            if self._continued() is None:
                return nothing
            raise

    def _of(
        self, name: str, in_file: Callable[[SealedFile], _Read], in_folder: Callable[[ZarrContainer], _Read]
    ) -> _Read:
        """Read a segment from where it lies; sealing moves it from the folder to the file."""
        file = self._file or self._current()
        while file is None or name not in file.names:
            try:
                return in_folder(self._folder)
            except Exception:
                before, file = file, self._current()
                if file is before:
                    raise
        return in_file(file)

    def _begin(self) -> ZarrContainer:
        """Return the folder to write to; it is made where missing."""
        self.lock()
        if self._continued() is None:
            self._check_committed()
            file = self._current()
            if file is None:
                raise FileNotFoundError(f"{self._path} was removed meanwhile")
            attributes = with_checksum({**file.attributes, APPENDS_TO: file.identity()})
            self._folder.create(attributes, file.read_extras())
        return self._folder

    def _seal(self, new: Sequence[NewSegment], gone: Collection[str]) -> None:
        file, folder = self._current(), self._continued()  # of one moment: somebody may put another file there
        attributes, extras = self.read_attributes(), self.read_extras()
        assert attributes is not None
        self._temporary.unlink(missing_ok=True)
        shutil.rmtree(self._removed, ignore_errors=True)
        free, needed = shutil.disk_usage(self._path.parent).free, self.stored()[1]
        if free < needed:
            raise OSError(
                errno.ENOSPC,
                f"No space left on device: the file is written whole, which takes {needed / 1e6:.1f} MB beside it, and "
                f"{free / 1e6:.1f} MB are free",
            )
        header = Header.from_attributes(attributes, self.path)
        there = {*gone, *(file.names if file is not None else ())}
        names = [name for name in folder.segment_names() if name not in there] if folder is not None else []
        segments = itertools.chain(new, (self._checked(name, header) for name in names))
        with replacing(self._path) as temporary:
            write_sealed(
                temporary,
                file,
                attributes,
                extras,
                segments,
                without=gone,
                blocks=self.read_blocks(),
                where=self.path,
            )
            if file is not None:
                shutil.copymode(self._path, temporary)
        sync(self._path.parent)
        self._remove_folder()
        journal_path(self._path).unlink(missing_ok=True)

    def _checked(self, name: str, header: Header) -> NewSegment:
        """Return a segment of the folder to be copied, read once before: its checksums find what is damaged.

        Raises:
            DamagedCacheError: a clip or the index does not match its checksum.
        """
        try:
            segment = read_segment_index(self._folder, name, fp.digest(header.fingerprint))
            for _, wrong in read_segment(self._folder, header, segment):
                for number, reason in wrong.items():
                    raise ValueError(f"clip {segment.ids[number]!r}: {reason}")
        except Exception as error:  # a container may raise anything over damaged bytes
            raise DamagedCacheError(
                f"{self.path} was not written, since segment {name} is damaged: {error}. `emi cache verify "
                f"{self.path}` names every damaged clip, `emi cache repair {self.path}` drops them"
            ) from error
        return self._folder.whole_segment(name)

    def _check_committed(self) -> None:
        """Make sure that what this process committed is still there.

        Raises:
            FileNotFoundError: somebody removed the folder, or took the file away that had its segments.
        """
        if self._place.exists() and self._continued() is None:
            return  # it is put aside, which says so
        if lost := self._committed - set(self.segment_names()):
            raise FileNotFoundError(
                f"{len(lost)} segments that were committed to {self._place} are gone: the folder was removed while "
                "this ran; run the same command again"
            )

    def _put_aside(self) -> Path | None:
        """Remove a folder without more segments than the file; rename one that continues another, and say to where."""
        if not self._place.exists() or self._continued() is not None:
            return None
        names = self._folder.segment_names() if self._folder.read_attributes() is not None else []
        if set(names) <= self._names_in_file():
            self._remove_folder()
            return None
        return self._place.rename(self._path.with_name(f"{self._path.name}.stopped-{time.time_ns()}.zarr"))

    def _remove_folder(self) -> None:
        """Rename the folder before its removal, so that a half-removed one is never read.

        Files that somebody else put into it are kept in a folder `NAME.h5.strays-<time>`.
        """
        shutil.rmtree(self._removed, ignore_errors=True)
        if self._place.exists():
            strays = self._path.with_name(f"{self._path.name}.strays-{time.time_ns()}")
            for stray in self._folder.strays():
                kept = strays / stray.relative_to(self._place)
                kept.parent.mkdir(parents=True, exist_ok=True)
                stray.rename(kept)
            self._place.rename(self._removed)
            shutil.rmtree(self._removed, ignore_errors=True)
        self._folder.close()
