"""The demo folder as a whole: what it holds, whether it is there already, and moving it to its place at once."""

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emi.demo.settings import DemoFolderError

SETTINGS_FILE = "demo.json"
ANNOTATIONS = "annotations/VA_Estimation_Challenge"
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What a demo folder holds.

    Attributes:
        folder: where it is.
        clips: number of clips; of videos in the layout of Aff-Wild2.
        train: labelled clips to train on; one for each person of a video in the layout of Aff-Wild2.
        valid: labelled clips to validate on.
        seconds: sound in all clips together.
        voices: different voices in both splits together.
        videos: clips with a picture.
        crops: images of faces.
        made: False when the folder held the same demo already and nothing was done.
    """

    folder: Path
    clips: int
    train: int
    valid: int
    seconds: float
    voices: int
    videos: int
    crops: int = 0
    made: bool = field(default=True, compare=False)

    def expected(self, kind: str) -> dict[str, int]:
        """Return how many files there should be, by pattern."""
        if kind == "va":
            labels = {f"{ANNOTATIONS}/Train_Set/*.txt": self.train, f"{ANNOTATIONS}/Validation_Set/*.txt": self.valid}
            return {"videos/*.mp4": self.videos, "cropped_aligned/*/*.jpg": self.crops, **labels}
        return {"audio/*.mp3": self.clips, "raw/*.mp4": self.videos, "*.csv": 3}


def write_settings(folder: Path, summary: DemoSummary, settings: Settings) -> None:
    """Write the file by which a later call recognises the folder."""
    counts = {name: value for name, value in asdict(summary).items() if name not in ("folder", "made")}
    text = json.dumps({"settings": settings, "counts": counts}, indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def find_demo(folder: Path, settings: Settings) -> DemoSummary | None:
    """Look whether the wanted demo is already there.

    Returns:
        Its summary, or None if ``folder`` is missing or empty, so that it may be made.

    Raises:
        DemoFolderError: if ``folder`` is no folder, or holds something else, another demo, or part of one.
    """
    if not folder.exists() and not folder.is_symlink():
        return None
    if not folder.is_dir():
        raise DemoFolderError(f"{folder} is not a folder; choose another place for the demo")
    if not any(folder.iterdir()):
        return None
    try:
        saved = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
        there, counts = dict(saved["settings"]), dict(saved["counts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DemoFolderError(
            f"{folder} is not empty and holds no demo (no readable {SETTINGS_FILE}); choose an empty or new folder"
        ) from error
    if there != settings:
        wanted, other = (", ".join(f"{key}={value}" for key, value in one.items()) for one in (settings, there))
        raise DemoFolderError(
            f"{folder} holds a demo with {other}, wanted {wanted}; choose another folder or delete this one"
        )
    summary = DemoSummary(folder=folder, **counts, made=False)
    for pattern, expected in summary.expected(settings["kind"]).items():
        if (found := len(list(folder.glob(pattern)))) != expected:
            raise DemoFolderError(
                f"{folder} holds only part of its demo: {found} of {expected} {pattern}; delete it and make it again"
            )
    return summary


@contextmanager
def built_beside(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside a place; what was not moved from there is removed."""
    building = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def put_in_place(building: Path, folder: Path, settings: Settings) -> DemoSummary | None:
    """Rename a finished demo to its place.

    Returns:
        None, or the summary of the same demo if another process was faster.

    Raises:
        DemoFolderError: if something else came into its place meanwhile.
    """
    try:
        if folder.is_dir() and not folder.is_symlink():
            folder.rmdir()  # only an empty one; Windows does not rename onto it
        building.rename(folder)
    except OSError:
        if (found := find_demo(folder, settings)) is not None:
            return found
        raise
    return None
