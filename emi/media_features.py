"""The features of a trained head's streams, computed from media as the caches that it was trained on hold them."""

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

from cache.derive.derived import source_header
from cache.errors import EmiError
from cache.format import Clip, Header
from extract.backbones import Identity, identify
from extract.batch_computer import ExtractedClip
from extract.clips import load_extractor, make_decoders
from extract.errors import BackboneError
from extract.faces.options import options_made_with
from extract.failures import Failure
from extract.modality.decoding import SharedDecoders
from extract.plan import make_header, windows
from extract.settings import DecodeOptions, ExtractSettings
from extract.sources import Source
from train_head.runs.load import TrainedHead, TrainedStream
from train_head.runs.run_folder import HERE


class ForeignFeaturesError(EmiError, ValueError):
    """A head was trained on features that emi did not extract."""


class StreamFeatures:
    """Computes the features of one stream of a trained head from media, as the cache it was trained on holds them.

    Args:
        trained: the head.
        stream: what it reads.
        backbone: where the backbone is now, if not where it was when the features were made.
        device: "auto", "cpu" or "cuda".
        options: which part of each file is decoded; by default whole files, and the track the run was trained on.

    Attributes:
        notes: sentences that a user should read.
        extractor: the backbone, and how it is run.

    Raises:
        StaleCacheError: the backbone's weights or configuration are not those the head was trained with.
    """

    def __init__(
        self, trained: TrainedHead, stream: TrainedStream, backbone: str | None, device: str, options: DecodeOptions
    ) -> None:
        self._stream, self._folder = stream, trained.folder
        self.notes: list[str] = []
        extracted = stream.header if stream.transform is None else source_header(stream.header, stream.transform)
        made_with = extracted.fingerprint
        if "weights_sha256" not in made_with:
            raise ForeignFeaturesError(
                f"{trained.folder} was trained on {made_with['backbone']}, features that emi did not extract and "
                "cannot make from media; predict clips of a cache with --test CSV in the command that trained it"
            )
        source = stream.features["source"]
        self._settings = ExtractSettings(
            backbone=backbone or (str(trained.folder.resolve()) if source == HERE else source),
            revision=None if backbone else stream.features.get("revision"),
            layer=layer if isinstance(layer := made_with.get("layer"), int) else None,
            pooling=made_with.get("pooling"),
            max_seconds=made_with.get("max_seconds"),
            precision=made_with["precision"],
            dtype=made_with["dtype"],
            device=device,
            track=made_with.get("track"),
            hop=made_with.get("hop"),
            **options_made_with(made_with),
        )
        describe = partial(identify, layer=self._settings.layer, pooling=self._settings.pooling)
        try:
            identity = describe(self._settings.backbone, self._settings.revision)
        except BackboneError:  # without that commit, the backbone as it is now; its hash is compared anyway
            if self._settings.revision is None:
                raise
            identity = describe(self._settings.backbone)
        self._header = self._header_of(identity, made_with)
        self._header.must_match(extracted, str(trained.folder))
        track = options.track or self._settings.track
        settings = replace(self._settings, track=track, allow_truncated=options.allow_truncated)
        self.extractor = load_extractor(identity, settings, made_with["precision"])

    def _header_of(self, identity: Identity, made_with: Mapping[str, Any]) -> Header:
        """Return the header of the features computed here, with the run's decoder; note if that is another version."""
        header = make_header(identity, self._settings, made_with["precision"])
        decoder, now = made_with.get("decoder", 1), header.fingerprint.get("decoder", 1)
        if decoder == now:
            return header
        self.notes.append(
            f"{self._folder} was trained on sound from version {decoder} of emi's decoder, and this is version "
            f"{now}: files with late sound, gaps or several tracks are read differently, others are the same"
        )
        as_then = {key: value for key, value in header.fingerprint.items() if key != "decoder"}
        return replace(header, fingerprint=as_then | ({} if decoder == 1 else {"decoder": decoder}))

    @property
    def by_picture(self) -> bool:
        """Whether there is a row per picture of a video, so that folders of images need one for their times."""
        return not self.hears and self._settings.fps is None

    @property
    def hears(self) -> bool:
        """Whether it reads sound, not faces."""
        return self.extractor.modality.name == "audio"

    def used(self, seconds: float) -> float:
        """Return how much of a clip of this length is used."""
        return self._settings.used(seconds)

    def extract(
        self, sources: Sequence[Source], done: Collection[str], decoders: SharedDecoders
    ) -> Generator[ExtractedClip | Failure, None, None]:
        """Yield the features of each clip that is not in `done` as the backbone gives them, or why there are none."""
        planned = windows(
            [self._where(source) for source in sources], self.extractor.modality, self._settings.max_seconds
        )
        return self.extractor.extract(planned, done=done, decoders=decoders)

    def _where(self, source: Source) -> Source:
        """Return where this stream of a clip is: of a folder of images, sound is in its video."""
        if not self.hears or not source.path.is_dir():
            return source if self.by_picture else replace(source, video=None)
        if source.video is None:
            silent = "is a folder of images, which has no sound; name the folder of their videos with --videos"
            return replace(source, problem=source.problem or silent)
        return replace(source, path=source.video, video=None)

    def as_stored(self, clip: ExtractedClip) -> Clip:
        """Return the numbers that a cache would hold, derived where that cache was."""
        stored, transform = self._header.stored(clip), self._stream.transform
        return stored if transform is None else self._stream.header.stored(transform.apply(stored))


def extract_together(
    streams: Mapping[str, StreamFeatures], sources: Sequence[Source], done: Collection[str] = ()
) -> Iterator[dict[str, ExtractedClip | Failure]]:
    """Yield what every stream gives of each clip. Streams that read the same of a file share what is decoded.

    What one stream is ahead of the others is kept until they have it: batches of at most a few windows.

    Args:
        streams: by name.
        sources: the clips, sorted by id; their batches do not depend on `done`.
        done: ids that are left out.
    """
    with contextlib.ExitStack() as stack:
        # last: each pipeline restores what it found, which another may have set
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        decoders = _shared_decoders(streams, len(sources) - len(done), stack)
        pipelines = {name: stream.extract(sources, done, decoders[name]) for name, stream in streams.items()}
        for pipeline in pipelines.values():
            stack.callback(pipeline.close)
        yield from in_step(pipelines)


def _shared_decoders(
    streams: Mapping[str, StreamFeatures], clips: int, stack: contextlib.ExitStack
) -> dict[str, SharedDecoders]:
    """Return decoders by stream, the same for those that read the same of a file."""
    found: dict[str, SharedDecoders] = {}
    groups: dict[object, list[str]] = {}
    for name, stream in streams.items():
        settings = stream.extractor.settings
        groups.setdefault((stream.extractor.modality.name, settings.max_seconds, settings.decoding), []).append(name)
    for names in groups.values():
        extractor = streams[names[0]].extractor
        settings = extractor.settings
        decoders = make_decoders(extractor.modality, clips, settings.workers, settings.max_seconds, settings.decoding)
        found |= dict.fromkeys(names, SharedDecoders(stack.enter_context(decoders), len(names)))
    return found


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


_Result = TypeVar("_Result", bound=_Identified)


def in_step(pipelines: Mapping[str, Iterator[_Result]]) -> Iterator[dict[str, _Result]]:
    """Join what several iterators give of the same clips, which each gives in an order of its own.

    Yields:
        By iterator, its result for a clip, in the order of the first.
    """
    (first, leading), *others = pipelines.items()
    ahead: dict[str, dict[str, _Result]] = {name: {} for name, _ in others}
    for result in leading:
        joined = {first: result}
        for name, pipeline in others:
            while result.id not in ahead[name]:
                other = next(pipeline)
                ahead[name][other.id] = other
            joined[name] = ahead[name].pop(result.id)
        yield joined
