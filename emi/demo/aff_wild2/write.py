"""Write videos, crops of their faces and annotations where Aff-Wild2 has them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from emi.demo.aff_wild2.plan import SETS, Trial, plan_videos
from emi.demo.aff_wild2.render import FACE_DIALS, RATE_HZ, VOICE_DIALS, render
from emi.demo.dials import describe
from emi.demo.encode import write_mp4
from emi.demo.espeak import Speaker
from emi.demo.layout import ANNOTATIONS, DemoSummary
from emi.demo.settings import DemoSettings
from extract.faces.align import crops, onto_template

JPEG_QUALITY = 92
README = """\
# Demo videos for emi, in the layout of Aff-Wild2

**These are not people.** The faces are drawings, and the speech is made by espeak-ng (a GPL-3 program; the sound is its
output). Valence and arousal are random curves that were drawn first; they set the properties of voice and face. A score
on these videos says nothing about a score on real ones.

| file | content |
|---|---|
| `videos/<video>.mp4` | {videos} videos with sound, 25, 29.97 or 7.5 pictures per second, {seconds:.0f} s in all |
| `cropped_aligned/<trial>/00001.jpg` … | {crops} faces by number of the picture; a missing number: no face |
| `annotations/VA_Estimation_Challenge/Train_Set/<trial>.txt` | {train} trials |
| `annotations/VA_Estimation_Challenge/Validation_Set/<trial>.txt` | {valid} trials of other people |
| `demo.json` | the settings: {videos} videos, seed {seed} |

A trial is a person of a video. Where two people are seen, their trials are called `<video>_left` and `<video>_right`,
and share the sound. An annotation has a line per picture, give or take two, below the line `valence,arousal`; −5: not
annotated.

The same settings and the same versions of espeak-ng, NumPy, Pillow and PyAV give the same bytes.

## How valence and arousal set voice and face

Each row is one property: its value when both are 0, what 1 adds, and the standard deviation of a random part, one per
sentence or face.

| property of the voice | unit | at rest | 1 adds | random |
|---|---|---|---|---|
{voice_dials}

| property of the face | unit | at rest | 1 adds | random |
|---|---|---|---|---|
{face_dials}

The mouth opens with the sound. With arousal, the voice gets louder and the head moves more.
"""


def write_videos(
    folder: Path, settings: DemoSettings, speaker: Speaker, on_progress: Callable[[int, int], None] | None
) -> DemoSummary:
    """Write all files but the settings.

    Args:
        folder: to create.
        settings: number of videos, and seed.
        speaker: speaks the sentences.
        on_progress: called with (videos done, videos in all) after each video.
    """
    planned = plan_videos(settings.count, settings.seed)
    (folder / "videos").mkdir(parents=True)
    for done, video in enumerate(planned, 1):
        made = render(video, speaker, np.random.default_rng([settings.seed, 4, done]))
        write_mp4(folder / "videos" / f"{video.name}.mp4", made.pictures, video.fps, made.sound, RATE_HZ)
        for trial, landmarks in zip(video.trials, made.landmarks, strict=True):
            _write_crops(folder / "cropped_aligned" / trial.name, made.pictures, landmarks, trial.present)
            _write_annotation(folder / ANNOTATIONS / SETS[video.split] / f"{trial.name}.txt", trial)
        if on_progress is not None:
            on_progress(done, len(planned))
    trials = [(video.split, trial) for video in planned for trial in video.trials]
    summary = DemoSummary(
        folder=folder,
        clips=len(planned),
        train=sum(split == "train" for split, _ in trials),
        valid=sum(split == "valid" for split, _ in trials),
        seconds=round(sum(float(len(video.times) / video.fps) for video in planned), 3),
        voices=len({trial.voice for _, trial in trials}),
        videos=len(planned),
        crops=sum(int(trial.present.sum()) for _, trial in trials),
    )
    counts = {name: getattr(summary, name) for name in ("videos", "seconds", "crops", "train", "valid")}
    text = README.format(
        **counts, seed=settings.seed, voice_dials=describe(VOICE_DIALS), face_dials=describe(FACE_DIALS)
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    return summary


def _write_crops(
    folder: Path, pictures: NDArray[np.uint8], landmarks: NDArray[np.float32], present: NDArray[np.bool_]
) -> None:
    folder.mkdir(parents=True)
    cut = crops(pictures[present], onto_template(landmarks[present]))
    for number, crop in zip((1 + np.flatnonzero(present)).tolist(), cut, strict=True):
        Image.fromarray(crop).save(folder / f"{number:05d}.jpg", quality=JPEG_QUALITY)


def _write_annotation(path: Path, trial: Trial) -> None:
    """One line per row; where there are more rows than frames, the last value is repeated."""
    at = np.minimum(np.arange(len(trial.annotated)), len(trial.valence) - 1)
    values = zip(trial.valence[at].tolist(), trial.arousal[at].tolist(), trial.annotated.tolist(), strict=True)
    lines = [f"{valence:.3f},{arousal:.3f}" if annotated else "-5,-5" for valence, arousal, annotated in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["valence,arousal", *lines, ""]), encoding="utf-8")
