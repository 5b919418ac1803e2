"""Write the README of a demo folder, which says what the clips are and what they are not."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from emi.demo.dials import DIALS
from emi.demo.layout import DemoSummary

TEXT = """\
# Demo clips for emi

**These are not people.** Every clip is synthetic speech made by espeak-ng (a GPL-3 program; the sound is its
output), then shaped in timbre, loudness and noise. The six intensities are random numbers that were drawn first and
then set the voice. Nothing here says anything about real emotion, and a score reached on these clips says nothing
about a score on real ones.

The layout is that of Hume-Vidmimic2, so that every command that works here works there.

| what | holds |
|---|---|
| `audio/00000.mp3` … | all {clips} clips, {seconds:.0f} s in all |
| `raw/00000.mp4` … | {videos} of them as film (a drawn face) with the same sound |
| `train_split.csv` | {train} clips |
| `valid_split.csv` | {valid} clips, of voices that are not in `train_split.csv` |
| `speakers.csv` | the espeak-ng voice of each clip ({voices} in all) |
| `demo.json` | the settings: {clips} clips, seed {seed} |

The same settings and the same versions of espeak-ng, NumPy and PyAV give the same bytes.

## How the intensities set the voice

Each line is one property: its value when all six are 0, what an intensity of 1 adds, and the standard deviation of
the random part that no label explains.

| property | unit | at rest | an intensity of 1 adds | random |
|---|---|---|---|---|
{dials}
"""


def write_readme(path: Path, *, summary: DemoSummary, seed: int) -> None:
    """Write the README.

    Args:
        path: the file to create.
        summary: what the folder holds.
        seed: it was made with.
    """
    lines = []
    for name, dial in DIALS.items():
        moves = ", ".join(f"{emotion} {move:+g}" for emotion, move in dial.moves.items()) or "—"
        lines.append(f"| {name.replace('_', ' ')} | {dial.unit} | {dial.rest:g} | {moves} | {dial.jitter:g} |")
    path.write_text(TEXT.format(dials="\n".join(lines), seed=seed, **asdict(summary)), encoding="utf-8")
