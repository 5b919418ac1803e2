"""What fine-tuning must know of a modality: how clips are decoded and kept, and what of them goes into a backbone.

The trainer knows clips only by these: rows of a stream (`train_head.data.streams.Stream`), which are samples of sound
or crops of a face, and what a backbone takes for some of them. To add a modality, write a class and add it to
`MODALITIES`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from cache.paths import StrPath
from emi.finetuning import audio, crops, decode_once
from emi.finetuning.crop_augment import change_crops
from emi.finetuning.decode_once import OnProgress
from emi.finetuning.settings import FinetuneSettings
from extract.failures import Failure, Note
from extract.settings import SAMPLE_RATE
from extract.sources import Source
from train_head.data.streams import Stream

SNR_SPREAD_DB = 20.0


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much goes through a backbone at once.

    Attributes:
        unit: rows of a stream that make one of what users count.
        words: what users count.
        option: that sets it.
        longest: what shortens the longest clip, for advice.
    """

    unit: int
    words: str
    option: str
    longest: str

    def text(self, rows: float) -> str:
        """Return such as `24 s of audio`."""
        return f"{rows / self.unit:g} {self.words}"


class Clips(Protocol):
    """Decoded clips of one modality.

    Attributes:
        failures: the clips that could not be read.
        notes: what the user should know about files that were used.
    """

    failures: Sequence[Failure]
    notes: Sequence[Note]

    def __contains__(self, clip: str) -> bool:
        """Whether a clip could be read."""

    def sha256(self, clips: Iterable[str]) -> str:
        """Return a hash of the content of some clips."""

    def stream(self, name: str, clips: Sequence[str]) -> Stream:
        """Return the rows of some clips."""

    def inputs(self, stream: Stream, samples: Sequence[int], noise: torch.Generator | None) -> list[Any]:
        """Return what a backbone takes for some samples of a stream.

        Args:
            stream: of these clips, or of windows of them.
            samples: their numbers.
            noise: where the chance of augmentation comes from; None changes nothing.
        """


class LearnedModality(Protocol):
    """How clips of a modality are fine-tuned on.

    Attributes:
        name: key in `extract.modality.registry.MODALITIES`.
        medium: what is decoded, in words.
        option: that names the folder of what is decoded.
        hash_name: under which config.toml records the content of the clips.
        amount: by which batches are cut into pieces.
        takes_frame_labels: whether there may be labels per frame.
        rows_alone: whether a row's features depend on that row alone.
        uses_all: whether every weight of a backbone has a gradient in each step.
    """

    name: str
    medium: str
    option: str
    hash_name: str
    amount: Amount
    takes_frame_labels: bool
    rows_alone: bool
    uses_all: bool

    def row_seconds(self) -> float | None:
        """Return the time from one row to the next; None where rows have times."""

    def at_once(self, device: str) -> float:
        """Return the rows that go through a backbone together on a kind of device."""

    def open(self, folder: StrPath, sources: Sequence[Source]) -> Clips | None:
        """Open the clips that a folder holds; None where it does not hold these."""

    def decode(self, folder: StrPath, sources: Sequence[Source], on_progress: OnProgress | None = None) -> None:
        """Decode clips into a folder."""

    def mended(self, sources: Sequence[Source], failures: Sequence[Failure]) -> bool:
        """Return whether a clip that could not be read can be read now."""


class Sound:
    """See `LearnedModality`; rows are samples at 16 kHz, and what a backbone takes is a waveform."""

    name, medium, option, hash_name = "audio", "sound", "--audio", "audio_sha256"
    amount = Amount(
        unit=SAMPLE_RATE, words="s of audio", option="--batch-seconds", longest="a lower --max-seconds shortens"
    )
    takes_frame_labels, rows_alone, uses_all = False, False, True

    def __init__(self, tuning: FinetuneSettings) -> None:
        self._tuning = tuning

    def row_seconds(self) -> float:
        """See `LearnedModality`."""
        return 1 / SAMPLE_RATE

    def at_once(self, device: str) -> float:
        """See `LearnedModality`."""
        return SAMPLE_RATE * (self._tuning.batch_seconds or (120.0 if device == "cuda" else 24.0))

    def open(self, folder: StrPath, sources: Sequence[Source]) -> "_SoundClips | None":
        """See `LearnedModality`."""
        found = audio.open_audio(folder, sources, *self._how)
        return None if found is None else _SoundClips(found, self._tuning)

    def decode(self, folder: StrPath, sources: Sequence[Source], on_progress: OnProgress | None = None) -> None:
        """See `LearnedModality`."""
        audio.decode_audio(folder, sources, *self._how, on_progress=on_progress)

    def mended(self, sources: Sequence[Source], failures: Sequence[Failure]) -> bool:
        """See `LearnedModality`."""
        return decode_once.mended(failures, audio.LAYOUT, audio.request_of(sources, *self._how))

    @property
    def _how(self) -> tuple[Any, ...]:
        return self._tuning.cut, self._tuning.audio_dtype, self._tuning.decoding


class _SoundClips:
    """See `Clips`."""

    def __init__(self, decoded: audio.Audio, tuning: FinetuneSettings) -> None:
        self._decoded, self.failures, self.notes = decoded, decoded.failures, decoded.notes
        self._augment = WaveformAugment(tuning) if tuning.augments_sound else None

    def __contains__(self, clip: str) -> bool:
        """See `Clips`."""
        return clip in self._decoded.starts

    def sha256(self, clips: Iterable[str]) -> str:
        """See `Clips`."""
        return self._decoded.sha256(clips)

    def stream(self, name: str, clips: Sequence[str]) -> Stream:
        """See `Clips`; (total samples,) int16 or float32."""
        starts, lengths = (
            torch.tensor([of[clip] for clip in clips], dtype=torch.int64)
            for of in (self._decoded.starts, self._decoded.lengths)
        )
        return Stream(name, self._decoded.samples, starts, lengths, 1 / SAMPLE_RATE)

    def inputs(self, stream: Stream, samples: Sequence[int], noise: torch.Generator | None) -> list[Tensor]:
        """See `Clips`; (samples,) float32 each."""
        at = torch.as_tensor(samples)
        places = zip(stream.starts[at].tolist(), stream.lengths[at].tolist(), strict=True)
        clips = [audio.waveform(stream.rows, start, length) for start, length in places]
        return clips if self._augment is None or noise is None else [self._augment(clip, noise) for clip in clips]


class WaveformAugment:
    """Changes waveforms at random, clip by clip: speed, gain and noise, each off by default.

    Speed is resampling, so pitch moves with it (Ko et al., Interspeech 2015, whose factors are 0.9, 1 and 1.1).

    Args:
        settings: which and how much.
    """

    def __init__(self, settings: FinetuneSettings) -> None:
        self._settings = settings
        share = round(settings.speed, 2)
        rates = [round(SAMPLE_RATE * factor) for factor in (1 - share, 1 + share)] if share else []
        # torchaudio's kernel grows with rate / gcd: whole hundredths of 16 kHz keep it small
        self._speeds = [torchaudio.transforms.Resample(rate, SAMPLE_RATE) for rate in rates]

    def __call__(self, waveform: Tensor, generator: torch.Generator) -> Tensor:
        """Change (samples,) float32 at random; speed changes the number of samples."""
        s = self._settings
        if self._speeds:
            which = int(torch.randint(len(self._speeds) + 1, (), generator=generator))
            if which:
                waveform = self._speeds[which - 1](waveform)
        if s.gain_db:
            gain = s.gain_db * (2 * float(torch.rand((), generator=generator)) - 1)
            waveform = waveform * 10 ** (gain / 20)
        if s.noise_snr:
            snr = s.noise_snr + SNR_SPREAD_DB * float(torch.rand((), generator=generator))
            noise = torch.randn(waveform.shape, generator=generator)
            waveform = waveform + noise * waveform.square().mean().sqrt() * 10 ** (-snr / 20)
        return waveform


class Faces:
    """See `LearnedModality`; rows are pictures, and what a backbone takes is the crops of a clip or window."""

    name, medium, option, hash_name = "face", "faces", "--crops", "crops_sha256"
    amount = Amount(
        unit=1, words="crops", option="--batch-crops", longest="a lower --max-seconds, --fps or --window shortens"
    )
    takes_frame_labels, rows_alone, uses_all = True, True, False

    def __init__(self, tuning: FinetuneSettings) -> None:
        self._tuning = tuning

    def row_seconds(self) -> float | None:
        """See `LearnedModality`."""
        fps = self._tuning.decoding.faces.fps
        return None if fps is None else 1 / fps

    def at_once(self, device: str) -> float:
        """See `LearnedModality`."""
        return self._tuning.batch_crops or (128 if device == "cuda" else 32)

    def open(self, folder: StrPath, sources: Sequence[Source]) -> "_FaceClips | None":
        """See `LearnedModality`."""
        found = crops.open_crops(folder, self._request(sources))
        return None if found is None else _FaceClips(found, self._tuning, self.row_seconds())

    def decode(self, folder: StrPath, sources: Sequence[Source], on_progress: OnProgress | None = None) -> None:
        """See `LearnedModality`."""
        crops.decode_crops(folder, self._request(sources), on_progress)

    def mended(self, sources: Sequence[Source], failures: Sequence[Failure]) -> bool:
        """See `LearnedModality`."""
        return decode_once.mended(failures, crops.LAYOUT, self._request(sources))

    def _request(self, sources: Sequence[Source]) -> decode_once.Request:
        return crops.request_of(sources, self._tuning.max_seconds, self._tuning.decoding)


@dataclass(frozen=True)
class GivenCrops:
    """The crops of a clip or window; see `extract.backbones.face_rows.Faces`."""

    faces: Sequence[NDArray[np.uint8]]
    computed: NDArray[np.bool_]
    times: None = None


class _FaceClips:
    """See `Clips`."""

    def __init__(self, decoded: crops.Crops, tuning: FinetuneSettings, hop: float | None) -> None:
        self._decoded, self.failures, self.notes = decoded, decoded.failures, decoded.notes
        self._tuning, self._hop = tuning, hop

    def __contains__(self, clip: str) -> bool:
        """See `Clips`."""
        return clip in self._decoded.starts

    def sha256(self, clips: Iterable[str]) -> str:
        """See `Clips`."""
        return self._decoded.sha256(clips)

    def stream(self, name: str, clips: Sequence[str]) -> Stream:
        """See `Clips`; (total rows, 0), since `inputs` gives the crops."""
        return self._decoded.stream(name, clips, self._hop)

    def inputs(self, stream: Stream, samples: Sequence[int], noise: torch.Generator | None) -> list[GivenCrops]:
        """See `Clips`."""
        at = torch.as_tensor(samples)
        found = []
        for start, length in zip(stream.starts[at].tolist(), stream.lengths[at].tolist(), strict=True):
            rows = torch.arange(start, start + length)
            rows = rows if stream.index is None else stream.index[rows]
            valid = torch.ones(length, dtype=torch.bool) if stream.valid is None else stream.valid[rows]
            images = [self._decoded.image(row) for row in rows[valid].tolist()]
            if noise is not None:
                images = change_crops(images, self._tuning, noise)
            found.append(GivenCrops(images, valid.numpy()))
        return found


MODALITIES: Mapping[str, Callable[[FinetuneSettings], LearnedModality]] = {"audio": Sound, "face": Faces}
