"""From clips to features in the cache, window by window (`extract.plan`): decode, run the backbone and store, at once.

Three stages run at the same time. Each is limited by the next, so that memory does not grow with the number of clips:

- decoding threads fill the next window while the batches of one are computed. From `PROCESSES_FROM` clips on, each
  thread has a process that reads for it (`extract.modality.decoding`);
- backbone threads compute batches (`BatchComputer`). On a CPU each thread uses one core: cores need not wait for each
  other at every operation, and intermediate values stay in a core's cache. On CUDA there are two threads with a stream
  each, so that one batch is transferred while the other is computed. A clip that is too long to hold is read there,
  in blocks, while it is computed;
- the caller stores the results, in the planned order.

What a clip is, how it is decoded and what it costs is up to the backbone's modality (`extract.modality`).
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from cache.errors import CacheFormatError
from cache.system.machine import available_cores
from cache.writer import CacheWriter
from extract.backbones import Backbone, Identity, family_of
from extract.batch_computer import Batch, BatchComputer, ExtractedClip, Results
from extract.failures import ClipResult, Failure, Note, OnResult
from extract.modality.decoding import Decoders, SharedDecoders
from extract.modality.protocol import Item, Modality
from extract.modality.registry import MODALITIES
from extract.plan import ExtractPlan, plan_batches
from extract.settings import DEFAULT, DecodeOptions, ExtractSettings
from extract.sources import Source
from extract.stats import PipelineStats
from extract.threads import one_thread_per_operation

PROCESSES_FROM = 200
"""Number of clips from which decoding processes are worth their start."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A backbone, loaded once for any number of windows, and how it is run.

    Attributes:
        backbone: on `device`.
        device: where it computes.
        settings: of the extraction.
        batch_seconds: upper bound in seconds on clips x longest clip of a batch.
        parallel_batches: batches computed at once.
        modality: what the backbone takes.
    """

    backbone: Backbone
    device: torch.device
    settings: ExtractSettings
    batch_seconds: float
    parallel_batches: int
    modality: Modality

    def extract(
        self, windows: Sequence[Sequence[Source]], **options: Any
    ) -> Generator[ExtractedClip | Failure, None, None]:
        """Run `extract_clips` as the settings say."""
        return extract_clips(
            windows,
            self.backbone,
            self.modality,
            device=self.device,
            max_seconds=self.settings.max_seconds,
            batch_seconds=self.batch_seconds,
            parallel_batches=self.parallel_batches,
            workers=self.settings.workers,
            options=self.settings.decoding,
            **options,
        )

    def fill(
        self, windows: Sequence[Sequence[Source]], writer: CacheWriter, stats: PipelineStats, done: Collection[str]
    ) -> Generator[ClipResult, None, None]:
        """Write the clips that are not in `done`, window by window; yield each after the writer has it."""
        dtype = torch.float16 if self.settings.dtype == "float16" else torch.float32
        with contextlib.closing(self.extract(windows, dtype=dtype, done=done, stats=stats)) as results:
            for result in results:
                if isinstance(result, Failure):
                    yield result.id, 0.0, result
                    continue
                remark: Note | Failure | None = None if result.note.empty else result.note
                try:
                    writer.add(result, result.medium)
                except CacheFormatError as error:  # the features of this clip cannot be stored; those of others can
                    remark = Failure(result.id, "", str(error))
                yield result.id, result.seconds, remark


def load_extractor(
    identity: Identity, settings: ExtractSettings, precision: str, parallel_batches: int | None = None
) -> Extractor:
    """Load a backbone onto the device of the settings.

    Args:
        identity: the backbone.
        settings: how it is run.
        precision: of the backbone's arithmetic, as in the cache's header.
        parallel_batches: batches computed at once, in place of the settings' number; no stored byte depends on it.

    Raises:
        BackboneError: its files do not fit.
    """
    device, modality = settings.resolved_device(), MODALITIES[identity.modality]
    batch_seconds, default_batches = settings.batching(identity.small)
    timed = replace(identity, hop_seconds=modality.hop_seconds(identity, settings))
    with one_thread_per_operation(device):
        backbone = family_of(identity.source, identity.revision).load(timed, device, precision)
    return Extractor(
        backbone=backbone,
        device=device,
        settings=settings,
        batch_seconds=batch_seconds,
        parallel_batches=parallel_batches or default_batches,
        modality=modality,
    )


def fill(plan: ExtractPlan, settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult) -> None:
    """Extract the clips of a plan that the cache lacks, in this process."""
    extractor = load_extractor(plan.identity, settings, plan.header.fingerprint["precision"])
    with (
        CacheWriter(cache, plan.header, refresh=plan.refresh) as writer,
        contextlib.closing(extractor.fill(plan.windows, writer, stats, writer.done)) as results,
    ):
        for result in results:
            on_result(*result)


def extract_clips(
    planned: Sequence[Sequence[Source]],
    backbone: Backbone,
    modality: Modality,
    *,
    device: torch.device,
    max_seconds: float | None,
    batch_seconds: float,
    parallel_batches: int = 1,
    dtype: torch.dtype = torch.float32,
    done: Collection[str] = (),
    workers: int = 0,
    options: DecodeOptions = DEFAULT,
    stats: PipelineStats | None = None,
    decoders: SharedDecoders | None = None,
) -> Generator[ExtractedClip | Failure, None, None]:
    """Yield the features of each clip that is not in `done`, or a `Failure` for a clip that cannot be extracted.

    Args:
        planned: windows from `extract.plan.windows`.
        backbone: on `device`.
        modality: what the backbone takes.
        device: where the clips are sent.
        max_seconds: cut of each clip; None computes whole clips.
        batch_seconds: upper bound in seconds on clips x longest clip of a batch.
        parallel_batches: batches computed at once; on a CPU in one thread each.
        dtype: of the frames when they leave the device.
        done: ids to leave out; may grow during the iteration.
        workers: decoding threads or processes; 0 starts one per core.
        options: which part of each file is decoded.
        stats: filled during the iteration.
        decoders: used in place of own ones; with the same cut and options.
    """
    stats = stats or PipelineStats()
    todo = [window for window in planned if any(source.id not in done for source in window)]
    own = partial(make_decoders, modality, sum(map(len, todo)), workers, max_seconds, options, describe=True)
    with (
        one_thread_per_operation(device),
        contextlib.nullcontext(decoders) if decoders is not None else own() as decoding,
        ThreadPoolExecutor(parallel_batches, thread_name_prefix="backbone") as computers,
    ):
        computer = BatchComputer(backbone, modality, device, dtype, stats, parallel_batches, options)
        batches = _batches(_decode_ahead(todo, done, decoding), done, modality, batch_seconds)
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


def make_decoders(
    modality: Modality,
    clips: int,
    workers: int,
    max_seconds: float | None,
    options: DecodeOptions,
    *,
    describe: bool = False,
) -> Decoders:
    """Return the decoders for so many clips; see `Decoders`. Processes start in less time than many clips take."""
    return Decoders(
        modality,
        workers or available_cores(),
        max_seconds,
        options,
        in_processes=clips >= PROCESSES_FROM,
        describe=describe,
    )


def _batches(
    windows: Iterable[tuple[Sequence[Source], dict[str, Item | Failure]]],
    done: Collection[str],
    modality: Modality,
    batch_seconds: float,
) -> Iterator[tuple[Batch, Sequence[Failure]]]:
    """Yield the batches of decoded windows, and before them the failures of each window; a long clip is one batch."""
    limit = batch_seconds * modality.cost_per_second
    for window, decoded in windows:
        yield [], [result for result in decoded.values() if isinstance(result, Failure)]
        items = [(s, item) for s in window if isinstance(item := decoded.get(s.id), Item)]
        clips = [(s, item) for s, item in items if not item.long]
        planned = plan_batches([modality.cost(item) for _, item in clips], limit)
        for batch in [*([clip] for clip in items if clip[1].long), *([clips[i] for i in batch] for batch in planned)]:
            if any(source.id not in done for source, _ in batch):
                yield batch, []


def _decode_ahead(
    todo: Sequence[Sequence[Source]], done: Collection[str], decoders: Decoders | SharedDecoders
) -> Iterator[tuple[Sequence[Source], dict[str, Item | Failure]]]:
    """Yield windows in order with their decoded clips, while the next window is being decoded."""

    def decode_missing(window: Sequence[Source]) -> dict[str, Future[Item | Failure]]:
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
            decoded |= {source.id: result for source, result in again if isinstance(result, Item)}
        yield window, decoded
