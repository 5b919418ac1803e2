"""Sound as a modality: (samples,) float32 at 16 kHz, mono. Importing this module imports neither PyAV nor torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from extract.audio.timed_sound import TimedSound
from extract.errors import MediaError
from extract.faces.options import NATIVE
from extract.modality.protocol import Modality, Read
from extract.settings import CUDA_BYTES_PER_SECOND, DECODER, RESAMPLER, SAMPLE_RATE, DecodeOptions, ExtractSettings
from extract.sources import Source

if TYPE_CHECKING:
    import torch

    from extract.audio.media import Waveform
    from extract.audio.recording import SoundRecording
    from extract.backbones.protocol import Identity


class Audio:
    """See `Modality`. The cost of a clip is its number of samples."""

    name = "audio"
    medium = "audio"
    cost_per_second = SAMPLE_RATE
    window_seconds = 1536.0
    """Three windows are in memory at a time (at most 3 x 98 MB of float32)."""
    longest_held = 60.0
    bytes_per_second = CUDA_BYTES_PER_SECOND
    marks = False
    packages: tuple[str, ...] = ("torch", "torchaudio", "transformers", "av", "silero-vad")

    def hop_seconds(self, identity: "Identity", settings: ExtractSettings) -> float | None:
        """See `Modality`."""
        if not identity.any_hop:
            return identity.hop_seconds
        return None if settings.fps is None else settings.hop or identity.hop_seconds

    def fingerprint(self, settings: ExtractSettings) -> Mapping[str, Any]:
        """See `Modality`. A fingerprint without `max_seconds` is that of whole clips."""
        return {
            "decoder": DECODER,
            **({"fps": NATIVE} if settings.fps is None else {}),
            **({} if settings.track is None else {"track": settings.track}),
            "sample_rate": SAMPLE_RATE,
            **({} if settings.max_seconds is None else {"max_seconds": float(settings.max_seconds)}),
            "resampler": RESAMPLER,
        }

    def reader(self) -> Read:
        """See `Modality`."""
        from extract.audio.media import read

        def read_source(source: Source, max_seconds: float | None, options: DecodeOptions) -> "Waveform":
            sound = read(source.path, max_seconds, options, self.longest_held)
            if options.faces.fps is not None:
                return sound
            from extract.faces.video import Video

            video = Video(source.path, fps=None, max_seconds=max_seconds, options=options)
            times, _ = video.frame_times()
            if not len(times):
                raise MediaError(f"shows no picture in its first {max_seconds} s, and --fps native asks for its times")
            return replace(sound, times=times)

        return read_source

    def finish(self, read: "Waveform", max_seconds: float | None) -> "Waveform":
        """Resample and cut."""
        return read.at_16_khz(max_seconds)

    def record(self, item: "Waveform", source: Source, options: DecodeOptions) -> "SoundRecording":
        """See `Modality`."""
        from extract.audio.recording import SoundRecording

        return SoundRecording(source.path, options, item.times)

    def cost(self, item: "Waveform") -> int:
        """Return the number of samples."""
        return len(item.samples)

    def inputs(
        self, items: "Sequence[Waveform]", device: "torch.device"
    ) -> "Sequence[torch.Tensor] | Sequence[TimedSound]":
        """See `Modality`."""
        import torch

        waveforms: Sequence[torch.Tensor] = [torch.from_numpy(item.samples) for item in items]
        if device.type == "cuda":
            joined = torch.cat(list(waveforms)).pin_memory().to(device, non_blocking=True)  # one transfer for all clips
            waveforms = joined.split([len(w) for w in waveforms])
        times = [torch.from_numpy(item.times) for item in items if item.times is not None]
        return [TimedSound(*pair) for pair in zip(waveforms, times, strict=True)] if times else waveforms

    def stated_seconds(self, source: Source, options: DecodeOptions) -> float | None:
        """See `Modality`."""
        from extract.audio.media import header_seconds

        return header_seconds(source.path, options.track)


AUDIO: Modality = Audio()
