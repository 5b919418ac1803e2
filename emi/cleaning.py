"""Find and remove what emi makes again when it is needed: decoded audio, crops of faces, states of finished runs.

Each is known by a file that only emi writes. Caches, predictions, weights, tables and figures of runs stay.
"""

import contextlib
import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emi.finetuning import audio, crops
from extract.faces.crop_table import RECORD, TABLE, crop_name, is_crop_table
from extract.faces.sheet import SHEET
from extract.failures import FAILURES, caches_of
from train_head.errors import RunFolderError
from train_head.runs.run_folder import FEATURES, LAST, is_finished


@dataclass(frozen=True)
class Removable:
    """Files that can be made again.

    Attributes:
        folder: that holds them.
        what: they are, and what makes them again.
        files: in the order in which they are removed; the one by which they are known is last.
    """

    folder: Path
    what: str
    files: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(path.stat().st_size for path in self.files)

    def remove(self) -> None:
        """Remove the files, and the folders that are empty then. Killed halfway, it is found again."""
        for path in self.files:
            path.unlink(missing_ok=True)
        folders = {self.folder, *(up for path in self.files for up in path.parents if up.is_relative_to(self.folder))}
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            with contextlib.suppress(OSError):  # not empty: it holds other files
                folder.rmdir()


def find_removable(folders: Sequence[Path]) -> Iterator[Removable]:
    """Find what can be made again, in folders and below.

    Args:
        folders: links within them are not followed.

    Raises:
        RunFolderError: one is no folder.
    """
    for root in folders:
        if not root.is_dir():
            raise RunFolderError(f"{root} is no folder; name folders of runs, of decoded audio or of crops of faces")
        for place, below, names in os.walk(root):
            below[:] = sorted(name for name in below if not name.endswith(".zarr"))
            folder = Path(place)
            for layout, what in ((audio.LAYOUT, "decoded audio"), (crops.LAYOUT, "crops of faces")):
                if layout.index in names:
                    content = sorted(folder.glob(layout.content.format("*") + "*"))
                    locks = [folder / name for name in (layout.lock, layout.index) if name in names]
                    yield Removable(folder, f"{what}, which `emi finetune` makes again", (*content, *locks))
            if RECORD in names:
                yield _crops(folder)
            if LAST in names and FEATURES not in names and is_finished(folder):
                # of a fine-tuned run it is small, and says that the backbone is whole
                yield Removable(folder, f"{LAST} of a finished run, which needs it no more", (folder / LAST,))


def _crops(folder: Path) -> Removable:
    """Return what `emi faces` has written: the images that its tables list, the tables, sheet and list."""
    files: list[Path] = []
    clips = 0
    for table in sorted(path for path in folder.rglob(TABLE) if path.parent != folder):
        if not is_crop_table(table):
            continue
        with table.open(newline="", encoding="utf-8") as file:
            rows = [int(row["row"]) - 1 for row in csv.DictReader(file) if row["valid"] == "1"]
        images = [table.with_name(crop_name(row)) for row in rows]
        clips += 1
        files += [*(image for image in images if image.is_file()), table]
    of_crops = (FAILURES,) if _lists_crops(folder / FAILURES) else ()
    files += [folder / name for name in (SHEET, TABLE, *of_crops, RECORD) if (folder / name).is_file()]
    return Removable(folder, f"crops of faces of {clips} clips, which `emi faces` makes again", tuple(files))


def _lists_crops(path: Path) -> bool:
    """Whether a list of failures is of crops alone; one may hold the clips of caches in the same folder as well."""
    names = caches_of(path)
    return bool(names) and not any(name.lower().endswith((".zarr", ".h5", ".hdf5")) for name in names)
