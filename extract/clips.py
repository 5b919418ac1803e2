"""From sources to features, window by window (`extract.plan`): decode ahead in threads, run the backbone on batches."""

import contextlib
import os
from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from cache.format import Clip
from extract.backbones.protocol import Backbone
from extract.errors import MediaError
from extract.failures import Failure
from extract.media import Waveform, decode
from extract.plan import plan_batches
from extract.sources import Source

Decoded = tuple[Source, Waveform | Failure]


def extract_clips(
    planned: Sequence[Sequence[Source]],
    backbone: Backbone,
    *,
    device: torch.device,
    max_seconds: float,
    batch_seconds: float,
    parallel_batches: int = 1,
    done: Collection[str] = (),
    workers: int = 0,
) -> Generator[Clip | Failure, None, None]:
    """Yield the features of every source in the windows that is not done, and a `Failure` for each unreadable one.

    Decoding, the backbone and the caller overlap: the next window is decoded, and the next batches are computed, while
    the caller stores what was yielded.

    Args:
        planned: windows from `windows`.
        backbone: runs on `device`.
        device: where the waveforms are sent.
        max_seconds: cut of each clip.
        batch_seconds: see `plan_batches`.
        parallel_batches: batches computed at once; above 1 each has one thread to itself.
        done: ids to leave out; read as the iteration goes on.
        workers: decoding threads; 0 takes one per core.
    """
    todo = [window for window in planned if any(source.id not in done for source in window)]
    with (
        _intraop_threads(1 if parallel_batches > 1 else torch.get_num_threads()),
        ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="decode") as decoders,
        ThreadPoolExecutor(parallel_batches, thread_name_prefix="backbone") as computers,
    ):
        running: deque[Future[list[Clip]]] = deque()
        try:
            for decoded in _decode_ahead(todo, decoders, max_seconds):
                readable = []
                for source, result in decoded:
                    if not isinstance(result, Failure):
                        readable.append((source, result))
                    elif source.id not in done:  # a clip that the cache has may be gone by now
                        yield result
                for batch in plan_batches([len(waveform.samples) for _, waveform in readable], batch_seconds):
                    clips = [readable[i] for i in batch]
                    if any(source.id not in done for source, _ in clips):
                        running.append(computers.submit(_run, clips, backbone, device))
                    while len(running) > 2 * parallel_batches:
                        yield from (clip for clip in running.popleft().result() if clip.id not in done)
            while running:
                yield from (clip for clip in running.popleft().result() if clip.id not in done)
        finally:
            decoders.shutdown(wait=False, cancel_futures=True)
            computers.shutdown(wait=False, cancel_futures=True)


def _decode_ahead(
    todo: Sequence[Sequence[Source]], pool: ThreadPoolExecutor, max_seconds: float
) -> Iterator[list[Decoded]]:
    """Decoded windows in order, one window ahead of the caller."""
    ahead: list[Future[Decoded]] = []
    for window in [*todo, []]:
        current, ahead = ahead, [pool.submit(_decode, source, max_seconds) for source in window]
        if current:
            yield [future.result() for future in current]


@contextlib.contextmanager
def _intraop_threads(count: int) -> Iterator[None]:
    """Set torch's threads per operation for a while; for small models one batch per core beats two cores per batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(clips: Sequence[tuple[Source, Waveform]], backbone: Backbone, device: torch.device) -> list[Clip]:
    with torch.inference_mode():
        features = backbone([torch.from_numpy(waveform.samples).to(device) for _, waveform in clips])
        frames = features.frames.cpu().split(list(features.lengths))
        vad = None if features.vad is None else features.vad.cpu().split(list(features.lengths))
        pooled = None if features.vad_pooled is None else features.vad_pooled.cpu()
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


def _decode(source: Source, max_seconds: float) -> Decoded:
    try:
        return source, decode(source.path, max_seconds)
    except MediaError as error:
        return source, Failure(source.id, str(source.path), str(error))
