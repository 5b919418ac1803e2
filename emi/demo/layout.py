"""The demo folder as a whole: its tables, its settings file, and putting it in its place at once."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from emi.demo.errors import DemoFolderError
from emi.demo.labels import EMOTIONS
from emi.demo.plan import Clip

SETTINGS_FILE = "demo.json"


@dataclass(frozen=True)
class DemoSummary:
    """What a demo folder holds.

    Attributes:
        folder: where it is.
        clips: number of clips, each an mp3.
        train: clips named in ``train_split.csv``.
        valid: clips named in ``valid_split.csv``.
        seconds: sound in all clips together.
        voices: different voices in both splits together.
        videos: clips that also have an mp4.
        made: False when the folder held the same demo already and nothing was done.
    """

    folder: Path
    clips: int
    train: int
    valid: int
    seconds: float
    voices: int
    videos: int
    made: bool = field(default=True, compare=False)


def write_tables(folder: Path, clips: Sequence[Clip]) -> None:
    """Write ``train_split.csv``, ``valid_split.csv`` (Hume-Vidmimic2's header) and ``speakers.csv``."""
    for split in ("train", "valid"):
        rows = [[clip.number, *(f"{value:.6g}" for value in clip.intensities)] for clip in clips if clip.split == split]
        _write_csv(folder / f"{split}_split.csv", ["Filename", *EMOTIONS], rows)
    speakers = [[clip.number, clip.voice, clip.split] for clip in clips]
    _write_csv(folder / "speakers.csv", ["Filename", "Voice", "Split"], speakers)


def write_settings(folder: Path, settings: dict[str, int], summary: DemoSummary) -> None:
    """Write ``demo.json``, by which a later call knows the folder again."""
    counts = {name: value for name, value in asdict(summary).items() if name not in ("folder", "made")}
    text = json.dumps({"settings": settings, "counts": counts}, indent=2)
    (folder / SETTINGS_FILE).write_text(text + "\n", encoding="utf-8")


def find_demo(folder: Path, settings: dict[str, int]) -> DemoSummary | None:
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
    saved = _read_settings(folder / SETTINGS_FILE)
    if saved is None:
        raise DemoFolderError(
            f"{folder} is not empty and holds no demo (no readable {SETTINGS_FILE}); choose an empty or new folder"
        )
    if saved["settings"] != settings:
        wanted, there = (", ".join(f"{k}={v}" for k, v in s.items()) for s in (settings, saved["settings"]))
        raise DemoFolderError(
            f"{folder} holds a demo with {there}, wanted {wanted}; choose another folder or delete this one"
        )
    counts = saved["counts"]
    sounds = len(list((folder / "audio").glob("*.mp3")))
    films = len(list((folder / "raw").glob("*.mp4")))
    tables = all((folder / f"{name}.csv").is_file() for name in ("train_split", "valid_split", "speakers"))
    if (sounds, films, tables) != (counts["clips"], counts["videos"], True):
        raise DemoFolderError(
            f"{folder} holds only part of its demo: {sounds} of {counts['clips']} mp3, {films} of "
            f"{counts['videos']} mp4, tables {'there' if tables else 'missing'}; delete it and make it again"
        )
    return DemoSummary(folder=folder, **counts, made=False)


def put_in_place(building: Path, folder: Path, settings: dict[str, int]) -> DemoSummary | None:
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
        found = find_demo(folder, settings)
        if found is None:
            raise
        return found
    return None


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _read_settings(path: Path) -> dict[str, dict[str, Any]] | None:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(saved, dict) and all(isinstance(saved.get(key), dict) for key in ("settings", "counts"))
    return saved if known else None
