"""From clips to features, window by window (`extract.plan`): decode, run the backbone and hand over, all at once.

Three stages run at the same time. Each is limited by the next, so that memory does not grow with the number of clips:

- decoding threads fill the next window while the batches of one are computed. From `PROCESSES_FROM` clips on, each
  thread has a process that decodes for it (`extract.audio.decoding`);
- backbone threads compute batches (`extract.compute`). On a CPU each thread uses one core: cores need not wait for each
  other at every operation, and intermediate values stay in a core's cache. On CUDA there are two threads with a stream
  each, so that one batch is transferred while the other is computed;
- the caller stores the results, in the planned order.
"""

import itertools
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cache.system.machine import available_cores
from extract.audio.decoding import Decoders
from extract.audio.media import Waveform
from extract.backbones.protocol import Backbone
from extract.compute import Batch, BatchComputer, ExtractedClip, Results, one_thread_per_operation
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
    in_processes = sum(map(len, todo)) >= PROCESSES_FROM
    with (
        one_thread_per_operation(device),
        Decoders(
            workers or available_cores(), max_seconds, options, in_processes=in_processes, describe=True
        ) as decoders,
        ThreadPoolExecutor(parallel_batches, thread_name_prefix="backbone") as computers,
    ):
        computer = BatchComputer(backbone, device, dtype, stats, parallel_batches)
        batches = _batches(_decode_ahead(todo, done, decoders), done, batch_seconds)
        computing: deque[Future[Results]] = deque()
        try:
            while True:
                with stats.timing("decode"):
                    for clips, failures in itertools.islice(batches, 2 * parallel_batches - len(computing)):
                        computing.append(
                            computers.submit(computer, clips) if clips else computers.submit(list, failures)
                        )
                if not computing:
                    return
                with stats.timing("device"):
                    results = computing.popleft().result()
                with stats.timing("write"):
                    yield from (result for result in results if result.id not in done)
        finally:
            computers.shutdown(cancel_futures=True)


def _batches(
    windows: Iterable[tuple[Sequence[Source], dict[str, Waveform | Failure]]],
    done: Collection[str],
    batch_seconds: float,
) -> Iterator[tuple[Batch, Sequence[Failure]]]:
    """Yield the batches of decoded windows, and before them the failures of each window."""
    for window, decoded in windows:
        yield [], [result for result in decoded.values() if isinstance(result, Failure)]
        readable = [(s, w) for s in window if isinstance(w := decoded.get(s.id), Waveform)]
        for batch in plan_batches([len(waveform.samples) for _, waveform in readable], batch_seconds):
            if any(readable[i][0].id not in done for i in batch):
                yield [readable[i] for i in batch], []


def _decode_ahead(
    todo: Sequence[Sequence[Source]], done: Collection[str], decoders: Decoders
) -> Iterator[tuple[Sequence[Source], dict[str, Waveform | Failure]]]:
    """Yield windows in order with their decoded clips, while the next window is being decoded."""

    def decode_missing(window: Sequence[Source]) -> dict[str, Future[Waveform | Failure]]:
        return {s.id: decoders.submit(s) for s in window if s.id not in done}

    ahead = [decode_missing(window) for window in todo[:1]]
    for i, window in enumerate(todo):
        ahead += [decode_missing(following) for following in todo[i + 1 : i + 2]]
        decoded = {id: future.result() for id, future in ahead.pop(0).items()}
        others = [source for source in window if source.id not in decoded]
        if others and not all(isinstance(result, Failure) for result in decoded.values()):
            # batches are those of the whole window; a clip in the cache whose file is gone is no failure
            futures = [decoders.submit(source) for source in others]
            again = zip(others, [future.result() for future in futures], strict=True)
            decoded |= {source.id: result for source, result in again if isinstance(result, Waveform)}
        yield window, decoded
