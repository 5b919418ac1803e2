"""From clips to features, window by window (`extract.plan`): decode, run the backbone and hand over, all at once.

Three stages run at the same time. Each is limited by the next, so that memory does not grow with the number of clips:

- decoding threads fill the next window while the batches of one are computed. From `PROCESSES_FROM` clips on, each
  thread has a process that decodes for it (`extract.audio.decoding`);
- backbone threads compute batches (`extract.compute`). On a CPU each thread uses one core: cores need not wait for each
  other at every operation, and intermediate values stay in a core's cache. On CUDA there are two threads with a stream
  each, so that one batch is transferred while the other is computed;
- the caller stores the results, in the planned order.
"""

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import torch

from cache.system.machine import available_cores
from extract.audio.decoding import Decoders
from extract.audio.media import Waveform
from extract.backbones.protocol import Backbone
from extract.compute import BatchComputer, ExtractedClip, Results, one_thread_per_operation
from extract.failures import Failure
from extract.plan import plan_batches
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source
from extract.stats import PipelineStats

PROCESSES_FROM = 200
"""Number of clips from which decoding processes are worth their start."""


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
    options: DecodeOptions = DEFAULT,
    stats: PipelineStats | None = None,
) -> Generator[ExtractedClip | Failure, None, None]:
    """Yield the features of each clip that is not in `done`, or a `Failure` for a clip that cannot be extracted.

    Args:
        planned: windows from `extract.plan.windows`.
        backbone: on `device`.
        device: where the waveforms are sent.
        max_seconds: cut of each clip.
        batch_seconds: see `plan_batches`.
        parallel_batches: batches computed at once; on a CPU in one thread each.
        dtype: of the frames when they leave the device.
        done: ids to leave out; may grow during the iteration.
        workers: decoding threads or processes; 0 starts one per core.
        options: which part of each file is decoded.
        stats: filled during the iteration.
    """
    stats = stats or PipelineStats()
    todo = [window for window in planned if any(source.id not in done for source in window)]
    with (
        one_thread_per_operation(device),
        Decoders(
            workers or available_cores(),
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
                results = _timed(step.result, stats, "device")
                started = time.monotonic()
                yield from (result for result in results if result.id not in done)
                stats.write += time.monotonic() - started
        finally:
            feeder.stop()
            computers.shutdown(wait=False, cancel_futures=True)


class _Feeder:
    """A thread that decodes windows, plans their batches and submits up to `ahead` of them before they are consumed."""

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
        self._steps: SimpleQueue[Future[Results] | None] = SimpleQueue()
        self._slots, self._stopped = threading.Semaphore(ahead), threading.Event()
        self._thread = threading.Thread(target=self._feed, name="decode-feeder", daemon=True)
        self._thread.start()

    def next(self) -> "Future[Results] | None":
        """Return the next batch, which may still be computed, or None at the end."""
        step = self._steps.get()
        self._slots.release()
        return step

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._slots.release()
        self._decoders.cancel()
        self._thread.join()

    def _feed(self) -> None:
        try:
            for window, decoded in self._decode_ahead():
                if failures := [f for f in decoded.values() if isinstance(f, Failure)]:
                    self._put(_finished, failures)
                readable = [(s, w) for s in window if isinstance(w := decoded.get(s.id), Waveform)]
                for batch in plan_batches([len(waveform.samples) for _, waveform in readable], self._batch_seconds):
                    clips = [readable[i] for i in batch]
                    if any(source.id not in self._done for source, _ in clips):
                        self._put(self._computers.submit, self._computer, clips)
            self._steps.put(None)
        except BaseException as error:  # raised again where the consumer asks for the result
            self._steps.put(_finished(error=error))

    def _put(self, submit: Callable[..., "Future[Results]"], *args: Any) -> None:
        self._slots.acquire()
        if self._stopped.is_set():
            raise _Stopped
        self._steps.put(submit(*args))

    def _decode_ahead(self) -> "Iterator[tuple[Sequence[Source], dict[str, Waveform | Failure]]]":
        """Yield windows in order with their decoded clips, while the next window is being decoded."""
        ahead = [self._decode_missing(window) for window in self._todo[:1]]
        for i, window in enumerate(self._todo):
            ahead += [self._decode_missing(following) for following in self._todo[i + 1 : i + 2]]
            decoded = {id: future.result() for id, future in ahead.pop(0).items()}
            others = [source for source in window if source.id not in decoded]
            if others and not all(isinstance(result, Failure) for result in decoded.values()):
                # batches are those of the whole window; a clip in the cache whose file is gone is no failure
                futures = [self._decoders.submit(source) for source in others]
                again = zip(others, [future.result() for future in futures], strict=True)
                decoded |= {source.id: result for source, result in again if isinstance(result, Waveform)}
            yield window, decoded

    def _decode_missing(self, window: Sequence[Source]) -> "dict[str, Future[Waveform | Failure]]":
        return {s.id: self._decoders.submit(s) for s in window if s.id not in self._done}


class _Stopped(Exception):  # noqa: N818 - not an error: the consumer has stopped
    pass


def _finished(results: Sequence[Failure] = (), error: BaseException | None = None) -> "Future[Results]":
    future: Future[Results] = Future()
    if error is None:
        future.set_result(list(results))
    else:
        future.set_exception(error)
    return future


def _timed(wait, stats: PipelineStats, stage: str):  # type: ignore[no-untyped-def]
    started = time.monotonic()
    try:
        return wait()
    finally:
        setattr(stats, stage, getattr(stats, stage) + time.monotonic() - started)
