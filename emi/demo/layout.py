"""The demo folder as a whole: its tables, its README, its settings file, and moving it to its place at once."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from emi.demo.dials import DIALS
from emi.demo.labels import EMOTIONS
from emi.demo.plan import Clip
from emi.demo.settings import DemoFolderError
from train_head.reports.tables import csv_text

SETTINGS_FILE = "demo.json"
README = """\
# Demo clips for emi

**These are not people.** Every clip is synthetic speech made by espeak-ng (a GPL-3 program; the sound is its
output), then modified in timbre, loudness and noise. The six intensities are random numbers that were drawn first; they
set the properties of the voice. The clips contain no information about real emotion, and a score on these clips says
nothing about a score on real ones.

The layout is that of Hume-Vidmimic2, so every command that works here works there too.

| file | content |
|---|---|
| `audio/00000.mp3` … | all {clips} clips, {seconds:.0f} s in all |
| `raw/00000.mp4` … | {videos} of them as video (a drawn face) with the same sound |
| `train_split.csv` | {train} clips |
| `valid_split.csv` | {valid} clips of voices that are not in `train_split.csv` |
| `speakers.csv` | the espeak-ng voice of each clip ({voices} in all) |
| `demo.json` | the settings: {clips} clips, seed {seed} |

The same settings and the same versions of espeak-ng, NumPy and PyAV give the same bytes.

## How the intensities set the voice

Each row is one property: its value when all six intensities are 0, what an intensity of 1 adds, and the standard
deviation of a random part that does not depend on the labels.

| property | unit | at rest | an intensity of 1 adds | random |
|---|---|---|---|---|
{dials}
"""


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


def write_texts(folder: Path, clips: Sequence[Clip], summary: DemoSummary, settings: dict[str, int]) -> None:
    """Write everything beside the media.

    These are ``train_split.csv`` and ``valid_split.csv`` (Hume-Vidmimic2's header), ``speakers.csv``, ``README.md``,
    and ``demo.json``, by which a later call recognises the folder.
    """
    for split in ("train", "valid"):
        rows = ([clip.number, *(f"{value:.6g}" for value in clip.intensities)] for clip in clips if clip.split == split)
        (folder / f"{split}_split.csv").write_bytes(csv_text([["Filename", *EMOTIONS], *rows]).encode())
    voices = ((clip.number, clip.voice, clip.split) for clip in clips)
    (folder / "speakers.csv").write_bytes(csv_text([("Filename", "Voice", "Split"), *voices]).encode())
    lines = []
    for name, dial in DIALS.items():
        moves = ", ".join(f"{emotion} {move:+g}" for emotion, move in dial.moves.items()) or "—"
        lines.append(f"| {name.replace('_', ' ')} | {dial.unit} | {dial.rest:g} | {moves} | {dial.jitter:g} |")
    text = README.format(dials="\n".join(lines), seed=settings["seed"], **asdict(summary))
    (folder / "README.md").write_text(text, encoding="utf-8")
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
    sounds, films = (len(list(folder.glob(files))) for files in ("audio/*.mp3", "raw/*.mp4"))
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
        if (found := find_demo(folder, settings)) is not None:
            return found
        raise
    return None
