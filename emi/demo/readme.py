"""Write the README of a demo folder, which explains that its clips are synthetic and how they were made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from emi.demo.dials import DIALS
from emi.demo.layout import DemoSummary

TEXT = """\
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


def write_readme(path: Path, *, summary: DemoSummary, seed: int) -> None:
    """Write the README of a demo folder.

    Args:
        path: the file to create.
        summary: numbers of clips, videos, voices and seconds in the folder.
        seed: seed of the demo.
    """
    lines = []
    for name, dial in DIALS.items():
        moves = ", ".join(f"{emotion} {move:+g}" for emotion, move in dial.moves.items()) or "—"
        lines.append(f"| {name.replace('_', ' ')} | {dial.unit} | {dial.rest:g} | {moves} | {dial.jitter:g} |")
    path.write_text(TEXT.format(dials="\n".join(lines), seed=seed, **asdict(summary)), encoding="utf-8")
