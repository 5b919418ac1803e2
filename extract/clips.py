"""From sources to features, window by window (`extract.plan`): decode, run the backbone, hand over; all at once.

Three stages overlap, each bounded by the next, so that memory does not grow with the number of clips:

- decoding threads fill one window ahead of the one whose batches are being computed. From `PROCESSES_FROM` clips on
  each of them has a process that decodes for it (`extract.decoder`); it resamples, which frees Python's lock, itself;
- backbone threads run batches. On a CPU each takes one core: a batch of its own per core needs no meeting of cores at
  every operation, and leaves what lies between operations in the core's cache. On CUDA two threads with a stream each
  let one batch travel while the other is computed;
- the caller stores what is yielded, in the planned order.
"""

import contextlib
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from cache.format import Clip
from extract.backbones.protocol import Backbone
from extract.decoder import Decoder, DecoderUnavailableError
from extract.errors import MediaError
from extract.failures import Failure
from extract.media import Waveform, decode
from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE, available_cores
from extract.sources import Source
from extract.stats import PipelineStats

Results = list[Clip | Failure]

PROCESSES_FROM = 200
"""Clips from which decoding processes are worth their start; until one has started, its thread decodes."""


def extract_clips(
    planned: Sequence[Sequence[Source]],
    backbone: Backbone,
    *,
    device: torch.device,
    max_seconds: float,
    batch_seconds: float,
    parallel_batches: int = 1,
    dtype: torch.dtype = torch.float32,
    done: Collection[str] = (),
    workers: int = 0,
    stats: PipelineStats | None = None,
) -> Generator[Clip | Failure, None, None]:
    """Yield the features of every source in the windows that is not done, and a `Failure` for each unreadable one.

    Args:
        planned: windows from `windows`.
        backbone: runs on `device`.
        device: where the waveforms are sent.
        max_seconds: cut of each clip.
        batch_seconds: see `plan_batches`.
        parallel_batches: batches computed at once; on a CPU each has one thread.
        dtype: to which frames are brought on the device.
        done: ids to leave out; read as the iteration goes on.
        workers: decoding threads or processes; 0 takes one per core.
        stats: filled as the iteration goes on.
    """
    stats = stats or PipelineStats()
    todo = [window for window in planned if any(source.id not in done for source in window)]
    cores = available_cores()
    with (
        _one_thread_per_operation(device),
        _Decoders(workers or cores, max_seconds, in_processes=sum(map(len, todo)) >= PROCESSES_FROM) as decoders,
        ThreadPoolExecutor(parallel_batches, thread_name_prefix="backbone") as computers,
    ):
        computer = _Computer(backbone, device, dtype, stats, parallel_batches)
        feeder = _Feeder(todo, done, batch_seconds, decoders, computers, computer, 2 * parallel_batches)
        try:
            while (step := _timed(feeder.next, stats, "decode")) is not None:
                results = step if isinstance(step, list) else _timed(step.result, stats, "device")
                started = time.monotonic()
                for result in results:
                    if result.id not in done:
                        yield result
                stats.write += time.monotonic() - started
        finally:
            feeder.stop()
            computers.shutdown(wait=False, cancel_futures=True)


class _Decoders:
    """Threads that turn sources into waveforms, each through a process of its own if so wished."""

    def __init__(self, workers: int, max_seconds: float, *, in_processes: bool) -> None:
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._max_seconds, self._in_processes = max_seconds, in_processes
        self._own = threading.local()
        self._processes: list[Decoder] = []

    def submit(self, source: Source) -> "Future[Waveform | Failure]":
        """Decode in turn; a clip that cannot be decoded is a `Failure`, whatever went wrong."""
        return self._threads.submit(self._decode, source)

    def _decode(self, source: Source) -> "Waveform | Failure":
        try:
            if self._in_processes:
                try:
                    if (decoder := self._decoder()).ready():
                        return decoder.read(source.path, self._max_seconds).waveform(self._max_seconds)
                except (DecoderUnavailableError, OSError):  # no processes to be had here
                    self._in_processes = False
            return decode(source.path, self._max_seconds)
        except MediaError as error:
            return Failure(source.id, str(source.path), str(error))
        except Exception as error:  # whatever one file does, the others go on
            return Failure(source.id, str(source.path), f"broke its decoder ({type(error).__name__}: {error})")

    def _decoder(self) -> Decoder:
        """This thread's own."""
        if not hasattr(self._own, "decoder"):
            self._own.decoder = Decoder()
            self._processes.append(self._own.decoder)
        decoder: Decoder = self._own.decoder
        return decoder

    def cancel(self) -> None:
        """Drop what has not begun."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> "_Decoders":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.close()


class _Feeder:
    """A thread that decodes windows, plans their batches and submits them, a bounded number ahead of the consumer."""

    def __init__(
        self,
        todo: Sequence[Sequence[Source]],
        done: Collection[str],
        batch_seconds: float,
        decoders: _Decoders,
        computers: ThreadPoolExecutor,
        computer: "_Computer",
        ahead: int,
    ) -> None:
        self._todo, self._done, self._batch_seconds = todo, done, batch_seconds
        self._decoders, self._computers, self._computer = decoders, computers, computer
        self._steps: SimpleQueue[Results | Future[Results] | BaseException | None] = SimpleQueue()
        self._slots = threading.Semaphore(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="decode-feeder", daemon=True)
        self._thread.start()

    def next(self) -> "Results | Future[Results] | None":
        """The next batch, whose future may not be finished; failures as they are; None at the end."""
        step = self._steps.get()
        self._slots.release()
        if isinstance(step, BaseException):
            raise step
        return step

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopped.set()
        self._slots.release()
        self._decoders.cancel()
        self._thread.join()

    def _feed(self) -> None:
        try:
            for window, decoded in self._decode_ahead():
                readable = [(s, w) for s in window if isinstance(w := decoded.get(s.id), Waveform)]
                failures: Results = [f for f in decoded.values() if isinstance(f, Failure)]
                if failures:
                    self._put(failures)
                for batch in plan_batches([len(waveform.samples) for _, waveform in readable], self._batch_seconds):
                    clips = [readable[i] for i in batch]
                    if any(source.id not in self._done for source, _ in clips):
                        self._put(clips)
            self._steps.put(None)
        except BaseException as error:  # handed to the consumer
            self._steps.put(error)

    def _put(self, step: "Results | list[tuple[Source, Waveform]]") -> None:
        self._slots.acquire()
        if self._stopped.is_set():
            raise _Stopped
        if isinstance(step[0], Failure):
            self._steps.put(step)
        else:
            self._steps.put(self._computers.submit(self._computer, step))  # type: ignore[arg-type]

    def _decode_ahead(self) -> "Iterator[tuple[Sequence[Source], dict[str, Waveform | Failure]]]":
        """Windows in order with their decoded clips, those of the next window being decoded meanwhile."""
        ahead = [self._decode_missing(window) for window in self._todo[:1]]
        for i, window in enumerate(self._todo):
            ahead += [self._decode_missing(following) for following in self._todo[i + 1 : i + 2]]
            decoded = {id: future.result() for id, future in ahead.pop(0).items()}
            others = [source for source in window if source.id not in decoded]
            if others and not all(isinstance(result, Failure) for result in decoded.values()):
                # batches are those of the whole window; what the cache has and can no longer be read is no failure
                found = [self._decoders.submit(source) for source in others]
                again = zip(others, [future.result() for future in found], strict=True)
                decoded |= {source.id: result for source, result in again if isinstance(result, Waveform)}
            yield window, decoded

    def _decode_missing(self, window: Sequence[Source]) -> "dict[str, Future[Waveform | Failure]]":
        return {s.id: self._decoders.submit(s) for s in window if s.id not in self._done}


class _Stopped(Exception):  # noqa: N818 - no error: the consumer has gone
    pass


class _Computer:
    """Runs batches; one that does not fit into memory is halved, and so are all later ones of its size."""

    def __init__(
        self, backbone: Backbone, device: torch.device, dtype: torch.dtype, stats: PipelineStats, parallel: int
    ) -> None:
        self._backbone, self._device, self._dtype, self._stats = backbone, device, dtype, stats
        self._streams = threading.local()
        self._parallel, self._running = parallel, threading.Semaphore(parallel)
        self._taking_all, self._counting = threading.Lock(), threading.Lock()

    def __call__(self, clips: Sequence[tuple[Source, Waveform]]) -> Results:
        halves = clips[: len(clips) // 2], clips[len(clips) // 2 :]
        limit = self._stats.halved_to
        if len(clips) == 1 or limit is None or _seconds(clips) <= limit:
            with self._running:
                results = self._run_if_it_fits(clips)
            if results is None and len(clips) == 1:
                with self._alone():
                    results = self._run_if_it_fits(clips)
                return results or [self._too_large(*clips[0])]
            if results is not None:
                return results
            self._stats.halved_to = min(max(map(_seconds, halves)), limit or float("inf"))
        return self(halves[0]) + self(halves[1])

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Without any other batch on the device."""
        with self._taking_all:
            for _ in range(self._parallel):
                self._running.acquire()
        try:
            yield
        finally:
            self._running.release(self._parallel)

    def _run_if_it_fits(self, clips: Sequence[tuple[Source, Waveform]]) -> Results | None:
        try:
            return self._run(clips)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _run(self, clips: Sequence[tuple[Source, Waveform]]) -> Results:
        samples = [len(waveform.samples) for _, waveform in clips]
        with torch.inference_mode(), self._stream():
            features = self._backbone(self._waveforms(clips))
            frames = _converted(features.frames, self._dtype).cpu().split(list(features.lengths))
            vad = None if features.vad is None else features.vad.cpu().split(list(features.lengths))
            pooled = None if features.vad_pooled is None else features.vad_pooled.cpu()
        with self._counting:
            self._stats.samples += sum(samples)
            if getattr(self._backbone, "pads", False):
                self._stats.padding += max(samples) * len(samples) - sum(samples)
        return [
            Clip(
                source.id,
                frames[i].numpy(),
                None if vad is None else vad[i].numpy(),
                None if pooled is None else pooled[i].numpy(),
                waveform.seconds,
            )
            for i, (source, waveform) in enumerate(clips)
        ]

    def _waveforms(self, clips: Sequence[tuple[Source, Waveform]]) -> Sequence[torch.Tensor]:
        waveforms = [torch.from_numpy(waveform.samples) for _, waveform in clips]
        if self._device.type != "cuda":
            return waveforms
        joined = torch.cat(waveforms).pin_memory().to(self._device, non_blocking=True)  # one transfer, not one per clip
        return joined.split([len(w) for w in waveforms])

    def _stream(self) -> contextlib.AbstractContextManager[object]:
        if self._device.type != "cuda":
            return contextlib.nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)
        return torch.cuda.stream(self._streams.own)

    def _too_large(self, source: Source, waveform: Waveform) -> Failure:
        return Failure(
            source.id,
            str(source.path),
            f"needs more memory for its {_seconds([(source, waveform)]):.1f} s than {self._device} has; end what else "
            "uses the memory, or lower --max-seconds in a cache of its own",
        )


def _seconds(clips: Sequence[tuple[Source, Waveform]]) -> float:
    return sum(len(waveform.samples) for _, waveform in clips) / SAMPLE_RATE


def _timed(wait, stats: PipelineStats, stage: str):  # type: ignore[no-untyped-def]
    started = time.monotonic()
    try:
        return wait()
    finally:
        setattr(stats, stage, getattr(stats, stage) + time.monotonic() - started)


def _converted(frames: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In the storage dtype, unless a value overflows: the cache then says which clip it was."""
    if dtype != torch.float16:
        return frames.to(dtype)
    converted = frames.half()
    exponents = converted.view(torch.int16) & 0x7C00
    return converted if int(exponents.max()) < 0x7C00 else frames


def _is_out_of_memory(error: Exception) -> bool:
    signs = ("allocate memory", "out of memory", "ALLOC_FAILED")  # torch's on a CPU, CUDA's, and its libraries'
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in signs)


@contextlib.contextmanager
def _one_thread_per_operation(device: torch.device) -> Iterator[None]:
    """For a while, on a CPU; the bytes of a matrix product depend on the threads that share it."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
