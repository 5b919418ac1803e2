"""Clips of synthetic speakers with six intensities each, in the layout of Hume-Vidmimic2."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from emi.demo.acting import act, follow_sound, rise
from emi.demo.dials import FACE, VOICE, describe, turn_dials
from emi.demo.drawing import Identity, draw
from emi.demo.encode import write_mp3, write_mp4
from emi.demo.espeak import SETTINGS, Speaker
from emi.demo.labels import EMOTIONS
from emi.demo.layout import DemoSummary
from emi.demo.plan import Clip, plan_clips
from emi.demo.prosody import Waveform, shape_waveform
from emi.demo.settings import MAX_CLIPS, DemoSettings
from train_head.reports.tables import csv_text

WORKERS = 2  # PyAV releases the GIL while it encodes
BATCH = 32  # clips held in memory at a time
FPS, HEIGHT, WIDTH = Fraction(6), 144, 192
"""Of the videos: small, so that they are drawn and searched for faces quickly."""
WIDEST = 0.7
"""Of the mouth while speaking."""
README = """\
# Demo clips for emi

**These are not people.** Every clip is synthetic speech made by espeak-ng (a GPL-3 program; the sound is its
output), then modified in timbre, loudness and noise{faces}. The six intensities are random numbers
that were drawn first; they set the properties of voice and face. The clips contain no information about real emotion,
and a score on these clips says nothing about a score on real ones.

The layout is that of Hume-Vidmimic2, so every command that works here works there too.

| file | content |
|---|---|
| `audio/00000.mp3` … | all {clips} clips, {seconds:.0f} s in all |
| `raw/00000.mp4` … | {videos} of them as video (a drawn face) with the same sound |
| `train_split.csv` | {train} clips |
| `valid_split.csv` | {valid} clips of voices and faces that are not in `train_split.csv` |
| `speakers.csv` | the espeak-ng voice of each clip ({voices} in all); each clip has a face of its own |
| `demo.json` | the settings: {clips} clips, seed {seed} |

The same settings and the same versions of espeak-ng, NumPy, Pillow and PyAV give the same bytes.

## How the intensities set voice and face

Each row is one property: its value when all six intensities are 0, what an intensity of 1 adds, and the standard
deviation of a random part that does not depend on the labels. Some emotions are heard better, others are seen better.

| property of the voice | unit | at rest | an intensity of 1 adds | random |
|---|---|---|---|---|
{voice_dials}

| property of the face | unit | at rest | an intensity of 1 adds | random |
|---|---|---|---|---|
{face_dials}

The mouth opens with the sound.
"""


def write_clips(
    folder: Path, settings: DemoSettings, speaker: Speaker, on_progress: Callable[[int, int], None] | None
) -> DemoSummary:
    """Write media, tables and README.

    Args:
        folder: to create.
        settings: number of clips, seed, and whether there are videos.
        speaker: speaks the sentences, in order (espeak-ng remembers what it said before).
        on_progress: called with (clips done, clips in all) after each clip.
    """
    planned, seconds = plan_clips(settings.count, settings.seed), 0.0
    for name in ("audio", "raw") if settings.faces else ("audio",):
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(planned), BATCH):
            jobs = []
            for clip in planned[start : start + BATCH]:
                rng = np.random.default_rng([settings.seed, 1, clip.number])
                style = turn_dials(VOICE, clip.amounts, rng)
                speech, rate = speaker.say(clip.voice, clip.text, **{name: round(style[name]) for name in SETTINGS})
                seconds += len(speech) / rate
                jobs.append(pool.submit(_write_media, folder, clip, speech, rate, style, rng, settings))
            for done, job in enumerate(jobs, start=start + 1):
                job.result()
                if on_progress is not None:
                    on_progress(done, len(planned))
    train = sum(clip.split == "train" for clip in planned)
    summary = DemoSummary(
        folder=folder,
        clips=len(planned),
        train=train,
        valid=len(planned) - train,
        seconds=round(seconds, 3),
        voices=len({clip.voice for clip in planned}),
        videos=len(planned) if settings.faces else 0,
    )
    _write_texts(folder, planned, summary, settings)
    return summary


def _write_media(
    folder: Path,
    clip: Clip,
    speech: Waveform,
    rate: int,
    style: dict[str, Any],
    rng: np.random.Generator,
    settings: DemoSettings,
) -> None:
    waveform = shape_waveform(speech, rate, style, rng)
    write_mp3(folder / "audio" / f"{clip.number:05d}.mp3", waveform, rate)
    if not settings.faces:
        return
    times = np.arange(max(1, round(len(waveform) / rate * FPS))) / float(FPS)
    rng = np.random.default_rng([settings.seed, 2, clip.number])
    expression = {name: value * rise(times) for name, value in turn_dials(FACE, clip.amounts, rng).items()}
    expression["jaw"] = WIDEST * follow_sound(waveform, rate, times, float(FPS))
    who = Identity.of(settings.seed * MAX_CLIPS + clip.number)
    pictures = (draw([(who, pose)], HEIGHT, WIDTH) for pose in act(expression, times, rng))
    write_mp4(folder / "raw" / f"{clip.number:05d}.mp4", pictures, FPS, waveform, rate)


def _write_texts(folder: Path, clips: Sequence[Clip], summary: DemoSummary, settings: DemoSettings) -> None:
    for split in ("train", "valid"):
        rows = ([clip.number, *(f"{value:.6g}" for value in clip.intensities)] for clip in clips if clip.split == split)
        (folder / f"{split}_split.csv").write_bytes(csv_text([["Filename", *EMOTIONS], *rows]).encode())
    voices = ((clip.number, clip.voice, clip.split) for clip in clips)
    (folder / "speakers.csv").write_bytes(csv_text([("Filename", "Voice", "Split"), *voices]).encode())
    text = README.format(
        **{name: getattr(summary, name) for name in ("clips", "seconds", "videos", "train", "valid", "voices")},
        seed=settings.seed,
        faces="; the faces are drawings" if settings.faces else "",
        voice_dials=describe(VOICE),
        face_dials=describe(FACE),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
