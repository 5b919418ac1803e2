"""Make a folder of spoken demo clips in the exact layout of Hume-Vidmimic2."""

import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from emi.demo.dials import draw_style
from emi.demo.encode import write_mp3, write_mp4
from emi.demo.espeak import SETTINGS, Speaker
from emi.demo.layout import DemoSummary, find_demo, put_in_place, write_texts
from emi.demo.plan import Clip, plan_clips
from emi.demo.prosody import Waveform, shape_waveform
from emi.demo.settings import DemoSettings

VIDEO_EVERY = 10
RECIPE = 1  # raise it whenever the same settings give other bytes
WORKERS = 2  # PyAV releases the GIL while it encodes
BATCH = 32  # clips held in memory at a time


def make_demo(folder: Path, *, on_progress: Callable[[int, int], None] | None = None, **settings: Any) -> DemoSummary:
    """Make a data set that anyone may have, in the layout of one that few may, so that every command can be tried.

    The same settings give the same bytes. The folder appears whole or not at all: it is built beside its place
    under a temporary name. Where the same demo is already, nothing is done.

    Args:
        folder: to create; an empty folder may be there.
        on_progress: called with (clips done, clips in all) after each clip.
        **settings: fields of `emi.demo.settings.DemoSettings` (clips, seed).

    Returns:
        Counts of what the folder holds.

    Raises:
        DemoSettingsError: if a setting is out of range.
        DemoFolderError: if ``folder`` holds anything but the same demo.
        DemoDependencyError: if ``espeakng-loader`` is not installed.
    """
    folder, chosen = Path(folder), DemoSettings(**settings)
    recorded = {"recipe": RECIPE, **asdict(chosen)}
    found = find_demo(folder, recorded)
    if found is not None:
        return found
    building = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex[:8]}.partial")
    planned = plan_clips(chosen.clips, chosen.seed)
    try:
        with Speaker(seed=chosen.seed) as speaker:
            for name in ("audio", "raw"):
                (building / name).mkdir(parents=True)
            seconds = _render_all(building, planned, speaker, chosen.seed, on_progress)
        train = sum(clip.split == "train" for clip in planned)
        summary = DemoSummary(
            folder=folder,
            clips=len(planned),
            train=train,
            valid=len(planned) - train,
            seconds=round(seconds, 3),
            voices=len({clip.voice for clip in planned}),
            videos=sum(clip.number % VIDEO_EVERY == 0 for clip in planned),
        )
        write_texts(building, planned, summary, recorded)
        return put_in_place(building, folder, recorded) or summary
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _render_all(
    folder: Path,
    planned: Sequence[Clip],
    speaker: Speaker,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> float:
    """Speak in order (espeak-ng remembers what it said before), encode on threads; returns the seconds of sound."""
    seconds = 0.0
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(planned), BATCH):
            jobs = []
            for clip in planned[start : start + BATCH]:
                rng = np.random.default_rng([seed, 1, clip.number])
                style = draw_style(clip.intensities, rng)
                speech, rate = speaker.say(clip.voice, clip.text, **{name: round(style[name]) for name in SETTINGS})
                seconds += len(speech) / rate
                jobs.append(pool.submit(_write_media, folder, clip, speech, rate, style, rng))
            for done, job in enumerate(jobs, start=start + 1):
                job.result()
                if on_progress is not None:
                    on_progress(done, len(planned))
    return seconds


def _write_media(
    folder: Path, clip: Clip, speech: Waveform, rate: int, style: dict[str, float], rng: np.random.Generator
) -> None:
    waveform = shape_waveform(speech, rate, style, rng)
    write_mp3(folder / "audio" / f"{clip.number:05d}.mp3", waveform, rate)
    if clip.number % VIDEO_EVERY == 0:
        write_mp4(folder / "raw" / f"{clip.number:05d}.mp4", waveform, rate, hue=clip.number * 0.618 % 1)
