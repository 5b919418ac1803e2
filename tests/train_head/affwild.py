"""Features and annotations in the layout of Aff-Wild2's track of valence and arousal, small."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache import Clip, Header
from cache.writer import CacheWriter

AUDIO_HOP = 0.04
TRAIN = {
    "1-30-1280x720": 29.97,
    "10-60-1280x720-1": 25.0,
    "10-60-1280x720_left": 25.0,
    "10-60-1280x720_right": 25.0,
    "104-17-720x480": 7.5,
    "118-30-640x480": 29.97,
    "2-30-640x360": 25.0,
    "33-30-1920x1080": 7.5,
    "7-60-1920x1080": 29.97,
}
"""Frame rates by trial; two of them share a video."""
VALID = {"201-30-640x480": 25.0, "202-30-640x480": 29.97}
TEST = {"301-30-640x480": 25.0, "302-30-640x480_left": 7.5}
MORE_ROWS = {"104-17-720x480": 2, "118-30-640x480": -1, "201-30-640x480": 1}
"""Label rows more than frames."""
SETTINGS = {"label_range": (-1, 1), "loss": "ccc", "precision": "fp32", "device": "cpu"}


@dataclass(frozen=True)
class AffWild:
    """Where it is.

    Attributes:
        root: holds `annotations/`, `face.zarr`, `audio.zarr` and `example.txt`.
        truth: by trial, (frames, 2) valence and arousal.
    """

    root: Path
    truth: dict[str, np.ndarray]

    @property
    def train(self) -> Path:
        return self.root / "annotations" / "VA_Estimation_Challenge" / "Train_Set"

    @property
    def valid(self) -> Path:
        return self.train.with_name("Validation_Set")

    @property
    def caches(self) -> dict[str, Path]:
        return {name: self.root / f"{name}.zarr" for name in ("face", "audio")}


def video_of(trial: str) -> str:
    return trial.removesuffix("_left").removesuffix("_right")


def make(root: Path, seconds: float = 4.0) -> AffWild:
    """Write the caches, the annotations and the organisers' example; the face shows valence, the sound arousal."""
    rng = np.random.default_rng(0)
    data = AffWild(root, {})
    face = Header(
        fingerprint={"backbone": "face", "dtype": "float32", "fps": "native"},
        dim=3,
        hop_seconds=None,
        modality="face",
        optional=("times", "valid"),
    )
    audio = Header(fingerprint={"backbone": "sound", "dtype": "float32"}, dim=2, hop_seconds=AUDIO_HOP)
    with CacheWriter(data.caches["face"], face) as faces, CacheWriter(data.caches["audio"], audio) as sounds:
        heard: dict[str, np.ndarray] = {}
        for split in (TRAIN, VALID, TEST):
            for trial, fps in split.items():
                rows = round(seconds * fps)
                time = np.arange(rows) / fps
                if video_of(trial) not in heard:
                    heard[video_of(trial)] = _wave(np.arange(0, seconds, AUDIO_HOP), rng)
                    signal = heard[video_of(trial)]
                    frames = np.column_stack([signal, np.ones(len(signal))]) + rng.normal(size=(len(signal), 2)) / 9
                    sounds.add(Clip(video_of(trial), frames.astype(np.float32), None, None, seconds))
                arousal = heard[video_of(trial)][
                    np.minimum((time / AUDIO_HOP).astype(int), len(heard[video_of(trial)]) - 1)
                ]
                data.truth[trial] = np.column_stack([_wave(time, rng), arousal])
                frames = np.column_stack([data.truth[trial][:, 0], np.ones((rows, 2))])
                frames += rng.normal(size=frames.shape) / 9
                valid = np.ones(rows, bool)
                valid[rows // 3 : rows // 3 + 5] = False
                times = np.column_stack([time, time + 1 / fps])
                faces.add(Clip(trial, frames.astype(np.float32), None, None, seconds, times, valid))
    for folder, split in ((data.train, TRAIN), (data.valid, VALID)):
        folder.mkdir(parents=True)
        for trial in split:
            write_annotation(folder, trial, data.truth[trial], MORE_ROWS.get(trial, 0))
    lines = [
        f"{trial}/{i + 1:05d}.jpg,0,0" for trial in sorted(TEST, reverse=True) for i in range(len(data.truth[trial]))
    ]
    (root / "example.txt").write_text("\n".join(["image_location,valence,arousal", *lines, ""]))
    return data


def write_annotation(folder: Path, trial: str, values: np.ndarray, more: int = 0) -> Path:
    """Write one file; a stretch is not annotated, and a row in one column only."""
    rows = [*values, *values[-1:].repeat(max(more, 0), axis=0)][: len(values) + more]
    lines = [f"{v:.6f},{a:.6f}" for v, a in rows]
    lines[3:6] = ["-5,-5"] * 3
    lines[6] = f"-5,{rows[6][1]:.6f}"
    place = folder / f"{trial}.txt"
    place.write_text("\n".join(["valence,arousal", *lines, ""]))
    return place


def _wave(time: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    speed, phase = rng.uniform(1, 4), rng.uniform(0, 6)
    return 0.8 * np.sin(speed * time + phase)
