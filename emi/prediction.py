"""From media to intensities with a trained run: the same path as extraction and training, without a cache."""

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cache.derive.derived import source_header
from cache.errors import EmiError
from cache.format import Clip, Header
from cache.paths import StrPath, takes_paths
from extract.backbones import Identity, identify
from extract.clips import ExtractedClip, load_extractor
from extract.errors import BackboneError, MediaListError
from extract.failures import Failure, Note
from extract.plan import make_header, windows
from extract.settings import DECODER, DEFAULT, DecodeOptions, ExtractSettings
from extract.sources import Source, find_media, is_list
from train_head.data.labels import FILENAME
from train_head.errors import RunFolderError
from train_head.runs.load import TrainedHead, TrainedStream, load_heads
from train_head.runs.run_folder import HERE

Record = dict[str, Any]
"""`Filename` (the clip's id) and one float per target."""
OnProgress = Callable[[int, int, float], None]


class UnreadableMediaError(EmiError, ValueError):
    """Some of the media could not be read."""


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
                "cannot make from media; predict clips of a cache with `emi train-head … --test CSV`"
            )
        source = stream.features["source"]
        self._settings = ExtractSettings(
            backbone=backbone or (str(trained.folder.resolve()) if source == HERE else source),
            revision=None if backbone else stream.features.get("revision"),
            layer=layer if isinstance(layer := made_with.get("layer"), int) else None,
            max_seconds=made_with.get("max_seconds"),
            precision=made_with["precision"],
            dtype=made_with["dtype"],
            device=device,
            track=made_with.get("track"),
        )
        try:
            identity = identify(self._settings.backbone, self._settings.revision, self._settings.layer)
        except BackboneError:  # without that commit, the backbone as it is now; its hash is compared anyway
            if self._settings.revision is None:
                raise
            identity = identify(self._settings.backbone, layer=self._settings.layer)
        self._header = self._header_of(identity, made_with)
        self._header.must_match(extracted, str(trained.folder))
        track = options.track or self._settings.track
        settings = replace(self._settings, track=track, allow_truncated=options.allow_truncated)
        self._extractor = load_extractor(identity, settings, made_with["precision"])

    def _header_of(self, identity: Identity, made_with: Mapping[str, Any]) -> Header:
        """Return the header of the features computed here, with the run's decoder; note if that is another version."""
        header = make_header(identity, self._settings, made_with["precision"])
        decoder = made_with.get("decoder", 1)
        if decoder == DECODER:
            return header
        self.notes.append(
            f"{self._folder} was trained on sound from version {decoder} of emi's decoder, and this is version "
            f"{DECODER}: files with late sound, gaps or several tracks are read differently, others are the same"
        )
        as_then = {key: value for key, value in header.fingerprint.items() if key != "decoder"}
        return replace(header, fingerprint=as_then | ({} if decoder == 1 else {"decoder": decoder}))

    def used(self, seconds: float) -> float:
        """Return how much of a clip of this length is used."""
        return self._settings.used(seconds)

    def extract(self, sources: Sequence[Source]) -> Generator[ExtractedClip | Failure, None, None]:
        """Yield the features of each clip as the backbone gives them, or why there are none."""
        return self._extractor.extract(windows(sources, self._extractor.modality, self._settings.max_seconds))

    def as_stored(self, clip: ExtractedClip) -> Clip:
        """Return the numbers that a cache would hold, derived where that cache was."""
        stored, transform = self._header.stored(clip), self._stream.transform
        return stored if transform is None else self._stream.header.stored(transform.apply(stored))


class Model:
    """A trained head with the backbones that its features came from.

    Args:
        trained: from `train_head.runs.load.load_head`.
        backbone: where the backbone is now, if not where it was when the features were made; by stream, where there are
            several.
        device: "auto", "cpu" or "cuda".
        options: which part of each file is decoded; by default whole files, and the track the run was trained on.

    Attributes:
        notes: sentences that a user should read.
        media_notes: what the user should know about the files of the last `iterate` (`extract.failures`), so far.
        stream_failures: the streams that could not be computed of clips which others predicted, with why; so far.

    Raises:
        StaleCacheError: a backbone's weights or configuration are not those the head was trained with.
        RunFolderError: it predicts frames, or `backbone` names a stream that the run does not have.
    """

    def __init__(
        self,
        trained: TrainedHead,
        *,
        backbone: str | Mapping[str, str] | None = None,
        device: str = "auto",
        options: DecodeOptions = DEFAULT,
    ) -> None:
        if trained.by_frame:
            raise RunFolderError(
                f"{trained.folder} predicts every frame, which from media is not built yet; predict the clips of a "
                "cache with `emi train-head … --test LABELS`"
            )
        self.trained, self.names, self.label_range = trained, trained.names, trained.label_range
        places = _backbones_by_stream(trained, backbone)
        self._streams = {
            name: StreamFeatures(trained, stream, places.get(name), device, options)
            for name, stream in trained.streams.items()
        }
        self.notes = list(dict.fromkeys(note for stream in self._streams.values() for note in stream.notes))
        self.media_notes: list[Note] = []
        self.stream_failures: list[Failure] = []

    def predict(self, media: StrPath | Sequence[StrPath], media_root: StrPath | None = None) -> list[Record]:
        """Intensities of every clip, in order of id, by the streams of it that can be computed.

        Args:
            media: a folder, a list file, a media file, or several of these.
            media_root: where the paths of list files start; each one's own folder by default.

        Returns:
            One record per clip: its id as `Filename`, and a float per target (on the labels' scale, not clipped to it).

        Raises:
            UnreadableMediaError: a file cannot be read; `iterate` carries on over those.
            MediaListError: nothing found, or two files with one id.
        """
        return _sorted_records(list(self.iterate(media, media_root)))

    def iterate(
        self, media: StrPath | Sequence[StrPath], media_root: StrPath | None = None
    ) -> Iterator[Record | Failure]:
        """Yield a record per clip as they come, or a failure where no stream of it can be computed."""
        return self.iterate_sources(list_sources(media, media_root))

    def iterate_sources(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None
    ) -> Iterator[Record | Failure]:
        """The same for clips that are listed already; see `list_sources`.

        Args:
            sources: sorted by id.
            on_progress: called after each clip with clips done, of how many, and seconds of audio of the one just done.
        """
        self.media_notes.clear()
        self.stream_failures.clear()
        for done, clips in enumerate(self._joined(sources), 1):
            failures = {name: clip for name, clip in clips.items() if isinstance(clip, Failure)}
            extracted = {name: clip for name, clip in clips.items() if not isinstance(clip, Failure)}
            if on_progress:
                used = (self._streams[name].used(clip.seconds) for name, clip in extracted.items())
                on_progress(done, len(sources), max(used, default=0.0))
            if not extracted:
                yield next(iter(failures.values()))
                continue
            for name, failure in failures.items():
                self.stream_failures.append(replace(failure, reason=f"stream {name!r}: {failure.reason}"))
            yield self._record(extracted)

    def _joined(self, sources: Sequence[Source]) -> Iterator[dict[str, ExtractedClip | Failure]]:
        """Yield what every stream gives of each clip; what one is ahead of the others is kept until they have it."""
        pipelines = {name: stream.extract(sources) for name, stream in self._streams.items()}
        (first, leading), *others = pipelines.items()
        ahead: dict[str, dict[str, ExtractedClip | Failure]] = {name: {} for name, _ in others}
        threads = torch.get_num_threads()
        try:
            for clip in leading:
                joined = {first: clip}
                for name, pipeline in others:
                    while clip.id not in ahead[name]:
                        other = next(pipeline)
                        ahead[name][other.id] = other
                    joined[name] = ahead[name].pop(clip.id)
                yield joined
        finally:
            for pipeline in pipelines.values():
                pipeline.close()
            torch.set_num_threads(threads)  # each pipeline restores what it found, which another may have set

    def _record(self, clips: Mapping[str, ExtractedClip]) -> Record:
        """Predict a clip from the numbers that caches would hold."""
        some = next(iter(clips.values()))
        if some.note.track or some.note.cut_off:
            self.media_notes.append(some.note)
        values = self.trained.predict({name: self._streams[name].as_stored(clip) for name, clip in clips.items()})
        return {FILENAME: some.id, **dict(zip(self.names, values.tolist(), strict=True))}


def _backbones_by_stream(trained: TrainedHead, given: str | Mapping[str, str] | None) -> Mapping[str, str]:
    """Return where the backbones are now, by stream.

    Raises:
        RunFolderError: a stream is named that the run does not have, or none is where it has several.
    """
    if given is None:
        return {}
    names = ", ".join(trained.streams)
    if isinstance(given, str):
        if len(trained.streams) > 1:
            raise RunFolderError(f"{trained.folder} reads several streams ({names}); give --backbone NAME=PATH")
        return dict.fromkeys(trained.streams, given)
    for name in given:
        if name not in trained.streams:
            raise RunFolderError(f"--backbone {name}=…: {trained.folder} reads {names}")
    return given


class Models(Model):
    """Runs that predict together, on the features of several backbones or fine-tuned ones.

    Args:
        members: of the same targets.
        weights: of each in the mean; they sum to 1.
    """

    def __init__(self, members: Sequence[Model], weights: Sequence[float]) -> None:
        self._members, self._weights = members, weights
        self.names = members[0].names
        self.notes = list(dict.fromkeys(note for member in members for note in member.notes))
        self.label_range = members[0].label_range
        self.media_notes = members[0].media_notes  # all members read the same media
        self.stream_failures = []

    def iterate_sources(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None
    ) -> Iterator[Record | Failure]:
        """As `Model.iterate_sources`; clips come once the last member has them, and fail if one cannot read them."""
        self.stream_failures.clear()
        sums = {source.id: np.zeros(len(self.names)) for source in sources}
        failures: dict[str, Failure] = {}
        for number, (member, weight) in enumerate(zip(self._members, self._weights, strict=True)):
            for result in member.iterate_sources(sources, self._counted(on_progress, number)):
                if isinstance(result, Failure):
                    failures.setdefault(result.id, result)
                else:
                    sums[result[FILENAME]] += weight * np.array([result[name] for name in self.names])
            self.stream_failures += (one for one in member.stream_failures if one not in self.stream_failures)
        for clip, values in sums.items():
            yield failures.get(clip) or {FILENAME: clip, **dict(zip(self.names, values.tolist(), strict=True))}

    def _counted(self, on_progress: OnProgress | None, number: int) -> OnProgress | None:
        """Return a progress by which each clip of a member counts in part; it is done when all members have it."""
        count = len(self._members)
        return on_progress and (
            lambda done, total, seconds: on_progress((number * total + done) // count, total, seconds / count)
        )


@takes_paths
def load(
    run: StrPath,
    *,
    backbone: str | Mapping[str, str] | None = None,
    device: str = "auto",
    options: DecodeOptions = DEFAULT,
) -> Model:
    """Load a run folder for prediction.

    Args:
        run: the folder.
        backbone: where the backbone is now, if it was moved.
        device: "auto", "cpu" or "cuda".
        options: what of each file is decoded.

    Raises:
        RunFolderError: it is no finished run, or an ensemble of several backbones, and `backbone` names one.
        BackboneError: the backbone cannot be found; name its place with `backbone`.
    """
    heads = load_heads(run)
    if len(heads) == 1:
        return Model(heads[0][0], backbone=backbone, device=device, options=options)
    if backbone is not None:
        raise RunFolderError(
            f"{run} predicts with {len(heads)} backbones, and --backbone says where one is; leave it out, or put each "
            "where its run was made"
        )
    return Models([Model(head, device=device, options=options) for head, _ in heads], [weight for _, weight in heads])


def _sorted_records(results: Sequence[Record | Failure]) -> list[Record]:
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        raise UnreadableMediaError(
            f"{len(failures)} of {len(results)} files cannot be read; the first, {failures[0].path}, "
            f"{failures[0].reason}"
        )
    return sorted((r for r in results if not isinstance(r, Failure)), key=lambda record: record[FILENAME])


def list_sources(media: StrPath | Sequence[StrPath], media_root: StrPath | None = None) -> list[Source]:
    """The clips of one place or several, sorted by id; where one is a list, its `media_root` is no concern of others.

    Raises:
        MediaListError: nothing found, or two files with one id.
    """
    places = [media] if isinstance(media, str) or not isinstance(media, Sequence) else media
    lists = [place for place in places if is_list(place)]
    if media_root is not None and not lists:
        raise MediaListError(f"--media-root {media_root} goes with a CSV or a text list of media; leave it out")
    sources = sorted(s for place in places for s in find_media(place, media_root if place in lists else None))
    for one, other in itertools.pairwise(sources):
        if one.id == other.id:
            raise MediaListError(f"{one.path} and {other.path} have one id, {one.id!r}; predict them separately")
    return sources
