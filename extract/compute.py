"""Run batches of clips on the device, from several threads at once."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from cache.format import Clip
from cache.paths import readable
from cache.sources import Medium
from cache.system.memory import is_out_of_memory
from extract.audio.media import Waveform
from extract.backbones.protocol import Backbone
from extract.failures import Failure, Note
from extract.settings import SAMPLE_RATE
from extract.sources import Source
from extract.stats import PipelineStats


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedClip(Clip):
    """The features of a clip, its file, and what the user should know about that."""

    note: Note
    medium: Medium | None


Batch = Sequence[tuple[Source, Waveform]]
Results = list[ExtractedClip | Failure]


class BatchComputer:
    """Computes batches. One that does not fit into memory is halved, and so are all later ones of its size.

    Args:
        backbone: on `device`.
        device: where the waveforms are sent.
        dtype: of the frames when they leave the device.
        stats: counts samples, padding and halving.
        parallel: maximum number of batches computed at once.
    """

    def __init__(
        self, backbone: Backbone, device: torch.device, dtype: torch.dtype, stats: PipelineStats, parallel: int
    ) -> None:
        self._backbone, self._device, self._dtype, self._stats = backbone, device, dtype, stats
        self._streams = threading.local()
        self._parallel, self._running = parallel, threading.Semaphore(parallel)
        self._reserving, self._counting = threading.Lock(), threading.Lock()

    def __call__(self, clips: Batch) -> Results:
        """Return the features of each clip in order, or a `Failure` for a clip that does not fit even alone."""
        halves = clips[: len(clips) // 2], clips[len(clips) // 2 :]
        limit = self._stats.halved_to
        if len(clips) == 1 or limit is None or _seconds(clips) <= limit:
            with self._running:
                results = self._run_if_it_fits(clips)
            if results is None and len(clips) == 1:
                with self._alone():
                    results = self._run_if_it_fits(clips)
                source, _ = clips[0]
                reason = (
                    f"needs more memory for its {_seconds(clips):.1f} s than {self._device} has; end other programs "
                    "that use the memory, or make another cache with a lower --max-seconds"
                )
                return results or [Failure(source.id, str(source.path), reason)]
            if results is not None:
                return results
            self._stats.halved_to = min(max(map(_seconds, halves)), limit or float("inf"))
        return self(halves[0]) + self(halves[1])

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other batch is on the device, and keep others off it."""
        with self._reserving:
            for _ in range(self._parallel):
                self._running.acquire()
        try:
            yield
        finally:
            self._running.release(self._parallel)

    def _run_if_it_fits(self, clips: Batch) -> Results | None:
        try:
            return self._run(clips)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run(self, clips: Batch) -> Results:
        samples = [len(waveform.samples) for _, waveform in clips]
        with torch.inference_mode(), self._stream():
            features = self._backbone(self._waveforms(clips))
            lengths = list(features.lengths)
            frames = _stored(features.frames, self._dtype).cpu().split(lengths)
            vad = None if features.vad is None else features.vad.cpu().split(lengths)
            pooled = None if features.vad_pooled is None else features.vad_pooled.cpu()
        with self._counting:
            self._stats.samples += sum(samples)
            if self._backbone.pads:
                self._stats.padding += max(samples) * len(samples) - sum(samples)
        return [
            ExtractedClip(
                source.id,
                frames[i].numpy(),
                None if vad is None else vad[i].numpy(),
                None if pooled is None else pooled[i].numpy(),
                waveform.seconds,
                Note(source.id, readable(str(source.path)), waveform.track, waveform.cut_off),
                waveform.medium,
            )
            for i, (source, waveform) in enumerate(clips)
        ]

    def _waveforms(self, clips: Batch) -> Sequence[torch.Tensor]:
        waveforms = [torch.from_numpy(waveform.samples) for _, waveform in clips]
        if self._device.type != "cuda":
            return waveforms
        joined = torch.cat(waveforms).pin_memory().to(self._device, non_blocking=True)  # one transfer, not one per clip
        return joined.split([len(w) for w in waveforms])

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        """Return this thread's CUDA stream as a context."""
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._streams, "stream"):
            self._streams.stream = torch.cuda.Stream(self._device)
            self._streams.stream.wait_stream(torch.cuda.default_stream(self._device))  # which laid out the weights
        return torch.cuda.stream(self._streams.stream)


@contextlib.contextmanager
def one_thread_per_operation(device: torch.device) -> Iterator[None]:
    """Compute each operation on a CPU in one thread, for a while.

    The bytes of a matrix product depend on the number of threads that share it. They also depend on the number of
    threads at the time when the weights were laid out, that is when the backbone was loaded (measured in float32
    through oneDNN). With one thread, machines with any number of cores give the same bytes.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(clips: Batch) -> float:
    return sum(len(waveform.samples) for _, waveform in clips) / SAMPLE_RATE


def _stored(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert to the storage dtype, unless a value overflows: the cache then names the clip."""
    if dtype != torch.float16:
        return frames.to(dtype)
    half = frames.half()
    exponents = half.view(torch.int16) & 0x7C00
    return half if int(exponents.max()) < 0x7C00 else frames
