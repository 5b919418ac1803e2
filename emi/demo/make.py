"""Make a folder of spoken demo clips in the exact layout of Hume-Vidmimic2."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from emi.demo.dials import draw_style
from emi.demo.encode import write_mp3, write_mp4
from emi.demo.errors import DemoSettingsError
from emi.demo.espeak import Speaker, Utterance
from emi.demo.layout import DemoSummary, find_demo, put_in_place, write_settings, write_tables
from emi.demo.plan import Clip, plan_clips
from emi.demo.prosody import Waveform, shape_waveform
from emi.demo.readme import write_readme

DEFAULT_CLIPS = 128
MIN_CLIPS = 4  # two per split: Pearson needs two values
MAX_CLIPS = 100_000  # five digits
VIDEO_EVERY = 10
RECIPE = 1  # raise it whenever the same settings give other bytes
WORKERS = 2  # PyAV releases the GIL while it encodes
BATCH = 32  # clips held in memory at a time


def make_demo(
    folder: Path,
    *,
    clips: int = DEFAULT_CLIPS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> DemoSummary:
    """Make a data set that anyone may have, in the layout of one that few may, so that every command can be tried.

    The same arguments give the same bytes. The folder appears whole or not at all: it is built beside its place
    under a temporary name. Where the same demo is already, nothing is done.

    Args:
        folder: to create; an empty folder may be there.
        clips: number of clips, 4 to 100000; a quarter is for validation.
        seed: of everything drawn, 0 or more.
        on_progress: called with (clips done, clips in all) after each clip.

    Returns:
        Counts of what the folder holds.

    Raises:
        DemoSettingsError: if ``clips`` or ``seed`` is out of range.
        DemoFolderError: if ``folder`` holds anything but the same demo.
        DemoDependencyError: if ``espeakng-loader`` is not installed.
    """
    folder = Path(folder)
    settings = _check_settings(clips, seed)
    found = find_demo(folder, settings)
    if found is not None:
        return found
    target = folder.absolute()
    building = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
    planned = plan_clips(clips, seed)
    try:
        with Speaker(seed=seed) as speaker:
            (building / "audio").mkdir(parents=True)
            (building / "raw").mkdir()
            seconds = _render_all(building, planned, speaker, seed, on_progress)
        summary = _summarise(folder, planned, seconds)
        write_tables(building, planned)
        write_readme(building / "README.md", summary=summary, seed=seed)
        write_settings(building, settings, summary)
        return put_in_place(building, folder, settings) or summary
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check_settings(clips: int, seed: int) -> dict[str, int]:
    if not MIN_CLIPS <= clips <= MAX_CLIPS:
        raise DemoSettingsError(f"a demo has {MIN_CLIPS} to {MAX_CLIPS} clips, got clips={clips}")
    if seed < 0:
        raise DemoSettingsError(f"a seed is 0 or more, got seed={seed}")
    return {"recipe": RECIPE, "clips": int(clips), "seed": int(seed)}


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
            batch = planned[start : start + BATCH]
            jobs = []
            for clip in batch:
                rng = np.random.default_rng([seed, 1, clip.number])
                style = draw_style(clip.intensities, rng)
                speech, rate = speaker.say(_utterance(clip, style))
                seconds += len(speech) / rate
                jobs.append(pool.submit(_write_media, folder, clip, speech, rate, style, rng))
            for done, job in enumerate(jobs, start=start + 1):
                job.result()
                if on_progress is not None:
                    on_progress(done, len(planned))
    return seconds


def _utterance(clip: Clip, style: dict[str, float]) -> Utterance:
    return Utterance(
        voice=clip.voice,
        text=clip.text,
        rate=round(style["rate"]),
        pitch=round(style["pitch"]),
        pitch_range=round(style["pitch_range"]),
        word_gap=round(style["word_gap"]),
    )


def _write_media(
    folder: Path, clip: Clip, speech: Waveform, rate: int, style: dict[str, float], rng: np.random.Generator
) -> None:
    waveform = shape_waveform(speech, rate, style, rng)
    name = f"{clip.number:05d}"
    write_mp3(folder / "audio" / f"{name}.mp3", waveform, rate)
    if clip.number % VIDEO_EVERY == 0:
        write_mp4(folder / "raw" / f"{name}.mp4", waveform, rate, hue=clip.number * 0.618 % 1)


def _summarise(folder: Path, planned: Sequence[Clip], seconds: float) -> DemoSummary:
    train = sum(clip.split == "train" for clip in planned)
    return DemoSummary(
        folder=folder,
        clips=len(planned),
        train=train,
        valid=len(planned) - train,
        seconds=round(seconds, 3),
        voices=len({clip.voice for clip in planned}),
        videos=sum(clip.number % VIDEO_EVERY == 0 for clip in planned),
    )
