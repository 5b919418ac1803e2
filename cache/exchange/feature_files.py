"""Files with the features of one clip each, as others computed them: find them in a folder, and read them safely."""

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import EmiError
from cache.exchange.csv_features import read_csv
from cache.exchange.features import FeatureFileError, Features
from cache.exchange.safe_pickle import load_array
from cache.exchange.selection import read_manifest
from cache.format import REAL
from cache.ids import clip_id, stored_form
from cache.paths import StrPath, at_home, is_utf8, readable

MAX_BYTES = 2 << 30
"""A clip that takes more is refused: 20 minutes at 50 Hz with 1024 float32 are 0.25 GB, a zip bomb is any size."""
FRAMES, TIMES, VALID = "frames", "times", "valid"
"""Arrays of an `.npz`: the features, where it holds several arrays, and what may stand beside them."""
NONZERO = "nonzero"
"""Instead of marks: rows that are all zero are those in which nothing was found."""
SHOWN = 160
"""Characters of a library's error over a damaged file that are repeated."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read.

    Attributes:
        root: the folder of the files.
        hop_seconds: time from one frame to the next, where files do not say when frames are.
        valid: where marks are: the name of an array in `.npz` files; for others a folder with a boolean `.npy` of the
            same name; or `NONZERO`. None takes those that files happen to have.
        columns: selects the features of CSVs by name; None takes all.
    """

    root: Path
    hop_seconds: float | None = None
    valid: str | None = None
    columns: re.Pattern[str] | None = None


def find_features(source: StrPath) -> dict[str, Path]:
    """Return the `.pkl`, `.npy` and `.npz` files under a folder by id, sorted: the path under it without suffix.

    Where there are none of these, the `.csv` files are returned.

    Integer names are padded to five digits, as for labels, so that they meet the clips of the same media. Hidden
    files and folders and all other suffixes (`Thumbs.db`) are passed over. A folder that `exporting` filled with `npz`
    files has ids for names already: they are taken as they are, `7` and `.hidden` too.

    Raises:
        FeatureFileError: no folder, nothing in it, two files with one id, or an export that has no file for each clip.
    """
    root = Path(at_home(source))
    if not root.is_dir():
        raise FeatureFileError(f"there is no folder {root}; name the one that holds the features, one file per clip")
    manifest = read_manifest(root, "npz")
    exported = manifest is not None
    if manifest is not None and manifest.get("kind") != "npz":
        raise FeatureFileError(
            f"{root} is an export of the kind {manifest.get('kind')!r}, without a file for each clip; import one made "
            "with `emi cache export --to npz`"
        )
    by_id: dict[str, Path] = {}
    paths = list(_walk(root, hidden=exported))
    arrays = [path for path in paths if path.suffix.lower() != ".csv"]
    for path in arrays or paths:
        name = readable(path.relative_to(root).with_suffix("").as_posix())
        name = name if exported else clip_id(stored_form(name))
        if name in by_id:
            raise FeatureFileError(f"{by_id[name]} and {path} are both clip {name!r}; keep one of them in {root}")
        by_id[name] = path
    if not by_id:
        raise FeatureFileError(f"{root} holds no features (looked for {' '.join(sorted(READERS))})")
    return dict(sorted(by_id.items()))


def read_features(path: Path, reading: Reading) -> Features:
    """Read the (frames, dim) numbers in one file, their times and marks; no file can run code.

    Raises:
        UnsafePickleError: a pickle with anything but one array of numbers.
        FeatureFileError: anything else that is not such an array, or times or marks that do not fit it.
        TableError: a CSV that is no text, or no table.
        OSError: the file cannot be read.
    """
    if not is_utf8(str(path)):
        raise FeatureFileError("has a name that is not UTF-8; rename it")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise FeatureFileError("is not a file")
    if not status.st_size:
        raise FeatureFileError("is empty (0 bytes)")
    suffix = path.suffix.lower()
    if suffix != ".npz" and status.st_size > MAX_BYTES:  # of an archive, only the array that is read counts
        raise FeatureFileError(f"has {status.st_size} bytes, and one clip takes at most {MAX_BYTES}")
    try:
        features = _checked(READERS[suffix](path, reading))
        return replace(features, valid=_marks(path, features, reading))
    except (EmiError, OSError):
        raise
    except Exception as error:  # NumPy and zipfile raise anything over damaged bytes
        reason = ascii(str(error)[:SHOWN])[1:-1] or type(error).__name__
        raise FeatureFileError(f"is not an intact {suffix} file of numbers ({reason}); copy it again") from error


def _checked(features: Features) -> Features:
    """Refuse what has not the shape or kind of features; there may be no frames.

    Raises:
        FeatureFileError: says what there is instead.
    """
    frames, times = features.frames, features.times
    if frames.dtype.kind not in REAL:
        raise FeatureFileError(f"holds {frames.dtype}, expected numbers")
    if frames.shape[:1] != (0,) and (frames.ndim != 2 or not frames.size):
        raise FeatureFileError(f"holds an array of shape {frames.shape}, expected (frames, dim)")
    if times is not None and times.shape != (len(frames), 2):
        raise FeatureFileError(f"has times of shape {times.shape}, expected {(len(frames), 2)}: starts and ends")
    return features


def _marks(path: Path, features: Features, reading: Reading) -> NDArray[np.bool_] | None:
    """Return which frames are valid: what the file says, and what `Reading.valid` points to.

    Raises:
        FeatureFileError: there is no mask, or it is not one of as many frames.
    """
    found: list[NDArray[Any]] = [] if features.valid is None else [features.valid]
    rows = len(features.frames)
    if reading.valid == NONZERO:
        found.append(np.any(features.frames, axis=tuple(range(1, features.frames.ndim))))
    elif reading.valid is not None and path.suffix.lower() != ".npz" and rows:
        file = Path(at_home(reading.valid)) / path.relative_to(reading.root).with_suffix(".npy")
        if not file.is_file():
            raise FeatureFileError(f"has no mask {file}")
        try:
            found.append(_read_npy(file, reading).frames)
        except Exception as error:  # NumPy raises anything over damaged bytes
            raise FeatureFileError(f"has a mask that is no intact .npy file: {file}") from error
    for marks in found:
        if marks.shape != (rows,) or not np.isin(marks, (0, 1)).all():
            raise FeatureFileError(f"has marks of shape {marks.shape} and {marks.dtype}, expected {(rows,)} and bool")
    return np.logical_and.reduce(found) if found else None


def _read_npy(path: Path, _: Reading) -> Features:
    with path.open("rb") as file:
        return Features(frames=np.lib.format.read_array(file, allow_pickle=False))


def _read_npz(path: Path, reading: Reading) -> Features:
    valid = VALID if reading.valid in (None, NONZERO) else reading.valid
    with zipfile.ZipFile(path) as archive:
        arrays = {
            member.filename.removesuffix(".npy"): member
            for member in archive.infolist()
            if member.filename.endswith(".npy")
        }
        features = [name for name in arrays if name not in (TIMES, valid)]
        if FRAMES not in arrays and len(features) != 1:
            raise FeatureFileError(f"holds {len(features)} arrays, expected one, or one named 'frames'")
        if reading.valid == valid and valid not in arrays:
            raise FeatureFileError(f"has no array {valid!r}, which --valid names")

        def read(name: str) -> NDArray[Any] | None:
            if name not in arrays:
                return None
            if arrays[name].file_size > MAX_BYTES:
                raise FeatureFileError(
                    f"unpacks to {arrays[name].file_size} bytes, and one clip takes at most {MAX_BYTES}"
                )
            with archive.open(arrays[name]) as file:
                return np.lib.format.read_array(file, allow_pickle=False)

        frames = read(FRAMES if FRAMES in arrays else features[0])
        assert frames is not None
        return Features(frames=frames, times=read(TIMES), valid=read(valid))


READERS: dict[str, Callable[[Path, Reading], Features]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".pkl": lambda path, _: Features(frames=load_array(path)),
    ".csv": lambda path, reading: read_csv(path, reading.columns, reading.hop_seconds),
}


def _walk(root: Path, *, hidden: bool) -> Iterator[Path]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=_unreadable):
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        # Sorted, because of two links to one folder the first gives the ids, on every machine the same.
        folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in READERS and (hidden or not name.startswith(".")):
                yield Path(folder, name)


def _unreadable(error: OSError) -> None:
    raise FeatureFileError(f"folder {error.filename} cannot be read ({error.strerror}); mend its permission") from error
