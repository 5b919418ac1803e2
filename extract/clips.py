"""From sources to features, window by window (`extract.plan`): decode, run the backbone, hand over; all at once.

Three stages overlap, each bounded by the next, so that memory does not grow with the number of clips:

- decoding threads fill one window ahead of the one whose batches are being computed. From `PROCESSES_FROM` clips on
  each of them has a process that decodes for it (`extract.audio.decoding`);
- backbone threads run batches (`extract.compute`). On a CPU each takes one core: a batch of its own per core needs no
  meeting of cores at every operation, and leaves what lies between operations in the core's cache. On CUDA two threads
  with a stream each let one batch travel while the other is computed;
- the caller stores what is yielded, in the planned order.
"""

import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

import torch

from cache.system.machine import available_cores
from extract.audio.decoding import Decoders
from extract.audio.media import Waveform
from extract.backbones.protocol import Backbone
from extract.compute import BatchComputer, ExtractedClip, Results, one_thread_per_operation
from extract.failures import Failure
from extract.plan import plan_batches
from extract.settings import DecodeOptions
from extract.sources import Source
from extract.stats import PipelineStats

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
    options: DecodeOptions | None = None,
    stats: PipelineStats | None = None,
) -> Generator[ExtractedClip | Failure, None, None]:
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
        options: what of each file is decoded.
        stats: filled as the iteration goes on.
    """
    stats = stats or PipelineStats()
    todo = [window for window in planned if any(source.id not in done for source in window)]
    cores = available_cores()
    with (
        one_thread_per_operation(device),
        Decoders(
            workers or cores,
            max_seconds,
            options,
            in_processes=sum(map(len, todo)) >= PROCESSES_FROM,
            describe=True,
        ) as decoders,
        ThreadPoolExecutor(parallel_batches, thread_name_prefix="backbone") as computers,
    ):
        computer = BatchComputer(backbone, device, dtype, stats, parallel_batches)
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


class _Feeder:
    """A thread that decodes windows, plans their batches and submits them, a bounded number ahead of the consumer."""

    def __init__(
        self,
        todo: Sequence[Sequence[Source]],
        done: Collection[str],
        batch_seconds: float,
        decoders: Decoders,
        computers: ThreadPoolExecutor,
        computer: BatchComputer,
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


def _timed(wait, stats: PipelineStats, stage: str):  # type: ignore[no-untyped-def]
    started = time.monotonic()
    try:
        return wait()
    finally:
        setattr(stats, stage, getattr(stats, stage) + time.monotonic() - started)
