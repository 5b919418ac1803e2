"""Compute batches of decoded clips: on a GPU in streams, halved where memory runs out, long clips in blocks."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from cache.format import Array, Clip
from cache.paths import readable
from cache.sources import Medium
from cache.system.memory import is_out_of_memory
from extract.backbones import Backbone
from extract.errors import MediaError
from extract.failures import Failure, Note
from extract.long_clips import compute_long, stored
from extract.modality.protocol import Item, Modality
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source
from extract.stats import PipelineStats


@dataclass(frozen=True, slots=True, eq=False)
class ExtractedClip(Clip):
    """The features of a clip, its file, and what the user should know about that."""

    note: Note = field(kw_only=True)
    medium: Medium | None = field(kw_only=True)


Batch = Sequence[tuple[Source, Item]]
Results = list[ExtractedClip | Failure]


class BatchComputer:
    """Computes batches. One that does not fit into memory is halved, and so are all later ones of its size.

    Args:
        backbone: on `device`.
        modality: of the clips.
        device: where the clips are sent.
        dtype: of the frames when they leave the device.
        stats: counts cost, padding and halving.
        parallel: maximum number of batches computed at once.
        options: which part of a long clip is decoded.
    """

    def __init__(
        self,
        backbone: Backbone,
        modality: Modality,
        device: torch.device,
        dtype: torch.dtype,
        stats: PipelineStats,
        parallel: int,
        options: DecodeOptions = DEFAULT,
    ) -> None:
        self._backbone, self._modality, self._device, self._dtype = backbone, modality, device, dtype
        self._stats, self._options = stats, options
        self._streams = threading.local()
        self._parallel, self._running = parallel, threading.Semaphore(parallel)
        self._reserving, self._counting = threading.Lock(), threading.Lock()

    def __call__(self, clips: Batch) -> Results:
        """Return the features of each clip in order, or a `Failure` for a clip that does not fit even alone."""
        halves = clips[: len(clips) // 2], clips[len(clips) // 2 :]
        limit = self._stats.halved_to
        if len(clips) == 1 or limit is None or self._seconds(clips) <= limit:
            with self._running:
                results = self._run_if_it_fits(clips)
            if results is None and len(clips) == 1:
                with self._alone():
                    results = self._run_if_it_fits(clips)
                source, item = clips[0]
                length = "length" if item.long else f"{self._seconds(clips):.1f} s"
                reason = (
                    f"needs more memory for its {length} than {self._device} has; end other programs that use the "
                    "memory, or make another cache with a lower --max-seconds"
                )
                return results or [Failure(source.id, str(source.path), reason)]
            if results is not None:
                return results
            self._stats.halved_to = min(max(map(self._seconds, halves)), limit or float("inf"))
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
        if clips[0][1].long:
            return [self._run_long(*clips[0])]
        items = [item for _, item in clips]
        costs = [self._modality.cost(item) for item in items]
        with torch.inference_mode(), self._stream():
            features = self._backbone(self._modality.inputs(items, self._device))
            lengths = list(features.lengths)
            frames = stored(features.frames, self._dtype).cpu().split(lengths)
            pooled = None if features.vad_pooled is None else features.vad_pooled.cpu().numpy()
            by_frame = {name: getattr(features, name) for name in ("vad", "times", "valid")}
            parts = {name: rows.cpu().split(lengths) for name, rows in by_frame.items() if rows is not None}
        with self._counting:
            self._stats.computed += sum(costs)
            if self._backbone.pads:
                self._stats.padding += max(costs) * len(costs) - sum(costs)
        return [
            _extracted(
                source,
                item,
                frames[i].numpy(),
                None if pooled is None else pooled[i],
                **{name: part[i].numpy() for name, part in parts.items()},
            )
            for i, (source, item) in enumerate(clips)
        ]

    def _run_long(self, source: Source, item: Item) -> ExtractedClip | Failure:
        recording = self._modality.record(item, source, self._options)
        try:
            with torch.inference_mode(), self._stream():
                found = compute_long(self._backbone, self._modality, recording, self._device, self._dtype)
        except MediaError as error:
            return Failure(source.id, readable(str(source.path)), readable(str(error)))
        with self._counting:
            self._stats.computed += found.cost
        if recording.valid is not None:
            found.frames[~recording.valid] = 0
        item = replace(item, seconds=recording.seconds, cut_off=recording.cut_off)
        by_row = {"vad": found.vad, "times": recording.times, "valid": recording.valid}
        return _extracted(source, item, found.frames, found.vad_pooled, **by_row)

    def _seconds(self, clips: Batch) -> float:
        return sum(self._modality.cost(item) for _, item in clips) / self._modality.cost_per_second

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        """Return this thread's CUDA stream as a context."""
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._streams, "stream"):
            self._streams.stream = torch.cuda.Stream(self._device)
            self._streams.stream.wait_stream(torch.cuda.default_stream(self._device))  # which laid out the weights
        return torch.cuda.stream(self._streams.stream)


def _extracted(
    source: Source,
    item: Item,
    frames: Array,
    vad_pooled: Array | None,
    *,
    vad: Array | None = None,
    times: Array | None = None,
    valid: Array | None = None,
) -> ExtractedClip:
    missing = item.missing or (0.0 if valid is None else 1 - float(valid.mean()))
    note = Note(source.id, readable(str(source.path)), item.track, item.cut_off, missing, item.remark, item.others)
    return ExtractedClip(source.id, frames, vad, vad_pooled, item.seconds, times, valid, note=note, medium=item.medium)
