"""Make picture and sound of a video: people take turns to speak, with voices and faces that follow their labels."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from emi.demo.acting import act, follow_sound
from emi.demo.aff_wild2.plan import Trial, Video
from emi.demo.dials import FACE, VOICE, turn_dials
from emi.demo.drawing import Identity, Pose, draw, find_landmarks
from emi.demo.espeak import SETTINGS, Speaker
from emi.demo.plan import SENTENCES
from emi.demo.prosody import Waveform, shape_waveform

RATE_HZ = 22050
PAUSE_SECONDS = (0.1, 0.4)
SHORTEST_SECONDS = 0.5
"""No sentence begins in the last part of a video."""
SWELL_DB = 5.0
"""By which an arousal of 1 makes a voice louder at that moment; `VOICE_MOVES` are per sentence."""
VOICE_MOVES = {
    "rate": {"arousal": 60.0},
    "pitch": {"arousal": 25.0, "valence": 8.0},
    "pitch_range": {"arousal": 15.0, "valence": 15.0},
    "smile": {"valence": 8.0},
    "dullness": {"arousal": -8.0},
}
FACE_MOVES = {
    "smile": {"valence": 0.9},
    "brow": {"arousal": 0.5},
    "slant": {"valence": -0.5},
    "blink": {"arousal": -0.35},
}
VOICE_DIALS = {name: replace(dial, moves=VOICE_MOVES.get(name, {})) for name, dial in VOICE.items()}
FACE_DIALS = {name: replace(dial, moves=FACE_MOVES[name]) for name, dial in FACE.items()}
CENTRES = {1: ((0.5, 0.47),), 2: ((0.27, 0.5), (0.73, 0.5))}
HEAD_SIZE = {1: 0.7, 2: 0.6}
"""By number of people: where their heads are, and how high, in fractions of the picture."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """What is seen and heard.

    Attributes:
        pictures: (frames, height, width, 3) uint8 RGB.
        landmarks: per trial (frames, 5, 2) float32, in pixels; where the face would be where nobody is seen.
        sound: (samples,) float32 at `RATE_HZ`, as long as the pictures.
    """

    pictures: NDArray[np.uint8]
    landmarks: list[NDArray[np.float32]]
    sound: Waveform


def render(video: Video, speaker: Speaker, rng: np.random.Generator) -> Rendered:
    """Make a video.

    Args:
        video: as planned.
        speaker: speaks the sentences.
        rng: where all that was not planned comes from.
    """
    voices = _speak(video, speaker, rng)
    faces = [Identity.of(trial.face) for trial in video.trials]
    moved = [
        _act(video, trial, voice, centre, rng)
        for trial, voice, centre in zip(video.trials, voices, CENTRES[len(faces)], strict=True)
    ]
    frames = range(len(video.times))
    seen = [
        [(face, poses[i]) for face, poses, trial in zip(faces, moved, video.trials, strict=True) if trial.present[i]]
        for i in frames
    ]
    return Rendered(
        pictures=np.stack([draw(people, *video.size, room=faces[0]) for people in seen]),
        landmarks=[
            np.stack([find_landmarks(face, pose, *video.size) for pose in poses])
            for face, poses in zip(faces, moved, strict=True)
        ],
        sound=np.sum(voices, axis=0),
    )


def _speak(video: Video, speaker: Speaker, rng: np.random.Generator) -> list[Waveform]:
    """Speak sentences in turns; a waveform for each person, silent where the others speak."""
    samples = round(len(video.times) / video.fps * RATE_HZ)
    waveforms = [np.zeros(samples, np.float32) for _ in video.trials]
    at, turn = rng.uniform(*PAUSE_SECONDS), int(rng.integers(2))
    while at < samples / RATE_HZ - SHORTEST_SECONDS:
        trial = video.trials[turn % len(video.trials)]
        now = min(round((at + 0.7) * video.fps), len(video.times) - 1)  # about the middle of the sentence
        amounts = {"valence": float(trial.valence[now]), "arousal": float(trial.arousal[now])}
        style = turn_dials(VOICE_DIALS, amounts, rng)
        text = SENTENCES[rng.integers(len(SENTENCES))]
        speech, rate = speaker.say(trial.voice, text, **{name: round(style[name]) for name in SETTINGS})
        assert rate == RATE_HZ
        start = round(at * rate)
        spoken = shape_waveform(speech, rate, style, rng)[: samples - start]
        seconds = (start + np.arange(len(spoken))) / rate
        spoken *= 10 ** (SWELL_DB / 20 * np.interp(seconds, video.times, trial.arousal))
        waveforms[turn % len(waveforms)][start : start + len(spoken)] += spoken
        at, turn = at + len(speech) / rate + rng.uniform(*PAUSE_SECONDS), turn + 1
    return waveforms


def _act(
    video: Video, trial: Trial, voice: Waveform, centre: tuple[float, float], rng: np.random.Generator
) -> list[Pose]:
    expression = turn_dials(FACE_DIALS, {"valence": trial.valence, "arousal": trial.arousal}, rng)
    expression["jaw"] = follow_sound(voice, RATE_HZ, video.times, float(video.fps))
    size, sway = HEAD_SIZE[len(video.trials)], 1 + 0.6 * trial.arousal
    return act(expression, video.times, rng, centre=centre, size=size, sway=sway)
