"""Files with the features of one clip each, as others computed them: find them in a folder, and read them safely."""

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheError, EmiError
from cache.exchange.safe_pickle import load_array
from cache.exchange.selection import read_manifest
from cache.format import REAL
from cache.ids import clip_id, stored_form
from cache.paths import StrPath, at_home, is_utf8, readable

MAX_BYTES = 2 << 30
"""A clip that takes more is refused: 20 minutes at 50 Hz with 1024 float32 are 0.25 GB, a zip bomb is any size."""
FRAMES = "frames.npy"
"""The array of an `.npz` that is read where it holds several."""
SHOWN = 160
"""Characters of a library's error over a damaged file that are repeated."""


class FeatureFileError(CacheError, ValueError):
    """A folder or file does not hold features that can be imported."""


def find_features(source: StrPath) -> dict[str, Path]:
    """Return the `.pkl`, `.npy` and `.npz` files under a folder by id, sorted: the path under it without suffix.

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
    for path in _walk(root, hidden=exported):
        name = readable(path.relative_to(root).with_suffix("").as_posix())
        name = name if exported else clip_id(stored_form(name))
        if name in by_id:
            raise FeatureFileError(f"{by_id[name]} and {path} are both clip {name!r}; keep one of them in {root}")
        by_id[name] = path
    if not by_id:
        raise FeatureFileError(f"{root} holds no features (looked for {' '.join(sorted(READERS))})")
    return dict(sorted(by_id.items()))


def read_frames(path: Path) -> NDArray[Any]:
    """Read the (frames, dim) array of numbers in one file; no file can run code.

    Raises:
        UnsafePickleError: a pickle with anything but one array of numbers.
        FeatureFileError: anything else that is not such an array.
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
        frames = READERS[suffix](path)
    except (EmiError, OSError):
        raise
    except Exception as error:  # NumPy and zipfile raise anything over damaged bytes
        reason = ascii(str(error)[:SHOWN])[1:-1] or type(error).__name__
        raise FeatureFileError(f"is not an intact {suffix} file of numbers ({reason}); copy it again") from error
    if frames.dtype.kind not in REAL:
        raise FeatureFileError(f"holds {frames.dtype}, expected numbers")
    if frames.ndim != 2 or not frames.size:
        raise FeatureFileError(f"holds an array of shape {frames.shape}, expected (frames, dim)")
    return frames


def _read_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_npz(path: Path) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive:
        arrays = {member.filename: member for member in archive.infolist() if member.filename.endswith(".npy")}
        if FRAMES not in arrays and len(arrays) != 1:
            raise FeatureFileError(f"holds {len(arrays)} arrays, expected one, or one named 'frames'")
        member = arrays.get(FRAMES) or next(iter(arrays.values()))
        if member.file_size > MAX_BYTES:
            raise FeatureFileError(f"unpacks to {member.file_size} bytes, and one clip takes at most {MAX_BYTES}")
        with archive.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)


READERS = {".npy": _read_npy, ".npz": _read_npz, ".pkl": load_array}


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
