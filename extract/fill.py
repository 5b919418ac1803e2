"""Run a loaded backbone over windows of clips, and write the features to a cache."""

import contextlib
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache.errors import CacheFormatError
from cache.writer import CacheWriter
from extract.backbones import Backbone, Identity, family_of
from extract.failures import ClipResult, Failure, Note, OnResult
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.sources import Source
from extract.stats import PipelineStats

if TYPE_CHECKING:
    import torch

    from extract.clips import ExtractedClip


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A backbone, loaded once for any number of windows, and how it is run.

    Attributes:
        backbone: on `device`.
        device: where it computes.
        settings: of the extraction.
        batch_seconds: see `extract.plan.plan_batches`.
        parallel_batches: batches computed at once.
    """

    backbone: Backbone
    device: "torch.device"
    settings: ExtractSettings
    batch_seconds: float
    parallel_batches: int

    def extract(
        self, windows: Sequence[Sequence[Source]], **options: Any
    ) -> "Generator[ExtractedClip | Failure, None, None]":
        """Run `extract.clips.extract_clips` as the settings say."""
        from extract.clips import extract_clips

        return extract_clips(
            windows,
            self.backbone,
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
        import torch

        dtype = torch.float16 if self.settings.dtype == "float16" else torch.float32
        with contextlib.closing(self.extract(windows, dtype=dtype, done=done, stats=stats)) as results:
            for result in results:
                if isinstance(result, Failure):
                    yield result.id, 0.0, result
                    continue
                remark: Note | Failure | None = result.note if result.note.track or result.note.cut_off else None
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
    from extract.clips import one_thread_per_operation

    device = settings.resolved_device()
    batch_seconds, default_batches = settings.batching(identity.small)
    with one_thread_per_operation(device):
        backbone = family_of(settings.backbone).load(identity, device, precision)
    return Extractor(
        backbone=backbone,
        device=device,
        settings=settings,
        batch_seconds=batch_seconds,
        parallel_batches=parallel_batches or default_batches,
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
