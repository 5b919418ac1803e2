"""From media to intensities with a trained run: the same path as extraction and training, without a cache."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike

from cache.errors import EmiError
from cache.paths import StrPath, takes_paths
from emi.media_features import StreamFeatures, extract_together, in_step
from extract.batch_computer import ExtractedClip
from extract.errors import MediaListError
from extract.failures import Failure, Note
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source, find_media, is_list
from train_head.data.labels import FILENAME
from train_head.errors import RunFolderError
from train_head.runs.load import TrainedHead, load_heads

Sound = tuple[ArrayLike, int]
"""Samples and their rate in Hz."""
Media = StrPath | bytes | Sound
Record = dict[str, Any]
"""`Filename` (the clip's id) and one float per target."""
OnProgress = Callable[[int, int, float], None]


class UnreadableMediaError(EmiError, ValueError):
    """Some of the media could not be read."""


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
        takes_images: whether a folder of images is a clip: whether a stream is of faces.
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
        self.takes_images = any(one.extractor.modality.name == "face" for one in self._streams.values())
        self.media_notes: list[Note] = []
        self.stream_failures: list[Failure] = []

    def predict(self, media: Media | Sequence[Media], media_root: StrPath | None = None) -> list[Record]:
        """Intensities of every clip, in order of id, by the streams of it that can be computed.

        Args:
            media: a folder, a list file, a media file, the bytes of one, or sound as (array, Hz), the array (samples,)
                or (channels, samples) of floats in -1 to 1, int16 or int32; or several. What is no path has its
                place among them as its id, from 00000.
            media_root: where the paths of list files start; each one's own folder by default.

        Returns:
            One record per clip: its id as `Filename`, and a float per target (on the labels' scale, not clipped to it).

        Raises:
            UnreadableMediaError: a file cannot be read; `iterate` carries on over those.
            MediaListError: nothing found, or two files with one id.
        """
        return _sorted_records(list(self.iterate(media, media_root)))

    def iterate(self, media: Media | Sequence[Media], media_root: StrPath | None = None) -> Iterator[Record | Failure]:
        """Yield a record per clip as they come, or a failure where no stream of it can be computed."""
        with tempfile.TemporaryDirectory(prefix="emi-") as folder:
            sources = list_sources(media, media_root, Path(folder), images=self.takes_images)
            yield from self.iterate_sources(sources)

    def iterate_sources(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None, done: Collection[str] = ()
    ) -> Generator[Record | Failure, None, None]:
        """The same for clips that are listed already; see `list_sources`.

        Args:
            sources: sorted by id.
            on_progress: called after each clip with clips done, of how many, and seconds of audio of the one just done.
            done: ids that are left out; the others are computed in the same batches as without it.
        """
        self.media_notes.clear()
        self.stream_failures.clear()
        total = sum(source.id not in done for source in sources)
        for number, clips in enumerate(extract_together(self._streams, sources, done), 1):
            failures = {name: clip for name, clip in clips.items() if isinstance(clip, Failure)}
            extracted = {name: clip for name, clip in clips.items() if not isinstance(clip, Failure)}
            if on_progress:
                used = (self._streams[name].used(clip.seconds) for name, clip in extracted.items())
                on_progress(number, total, max(used, default=0.0))
            if not extracted:
                yield next(iter(failures.values()))
                continue
            for name, failure in failures.items():
                self.stream_failures.append(replace(failure, reason=f"stream {name!r}: {failure.reason}"))
            yield self._record(extracted)

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
        self.takes_images = any(member.takes_images for member in members)
        self.media_notes = members[0].media_notes  # all members read the same media
        self.stream_failures = []

    def iterate_sources(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None, done: Collection[str] = ()
    ) -> Generator[Record | Failure, None, None]:
        """As `Model.iterate_sources`; a clip fails if one member cannot read it."""
        self.stream_failures.clear()
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())  # last: see `extract_together`
            members = []
            for i, member in enumerate(self._members):
                members.append(member.iterate_sources(sources, on_progress if not i else None, done))
                stack.callback(members[-1].close)
            yield from self._joined(members)

    def _joined(self, members: Sequence[Iterator[Record | Failure]]) -> Iterator[Record | Failure]:
        known: set[Failure] = set()
        told = [0] * len(members)
        for joined in in_step({str(i): map(_Member, member) for i, member in enumerate(members)}):
            results = [member.result for member in joined.values()]
            for i, member in enumerate(self._members):
                fresh = [failure for failure in member.stream_failures[told[i] :] if failure not in known]
                told[i] = len(member.stream_failures)
                known.update(fresh)
                self.stream_failures += fresh
            failure = next((result for result in results if isinstance(result, Failure)), None)
            if failure is not None:
                yield failure
                continue
            records = [result for result in results if not isinstance(result, Failure)]
            weighted = zip(self._weights, records, strict=True)
            values = sum(weight * np.array([record[name] for name in self.names]) for weight, record in weighted)
            yield {FILENAME: records[0][FILENAME], **dict(zip(self.names, np.asarray(values).tolist(), strict=True))}


class _Member:
    """What a member gives of a clip, with its id."""

    def __init__(self, result: Record | Failure) -> None:
        self.result = result
        self.id: str = result.id if isinstance(result, Failure) else result[FILENAME]


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


def list_sources(
    media: Media | Sequence[Media],
    media_root: StrPath | None = None,
    folder: Path | None = None,
    *,
    images: bool = False,
) -> list[Source]:
    """The clips of one place or several, sorted by id; where one is a list, its `media_root` is no concern of others.

    Args:
        media: see `Model.predict`.
        media_root: where the paths of list files start.
        folder: where media that are in memory are written; needed where some are.
        images: whether folders of images are clips (`Model.takes_images`).

    Raises:
        MediaListError: nothing found, or two files with one id.
    """
    one = isinstance(media, str | bytes | os.PathLike) or _is_sound(media)
    places = [cast(Media, media)] if one else list(cast(Sequence[Media], media))
    lists = [place for place in places if isinstance(place, str | os.PathLike) and is_list(place)]
    if media_root is not None and not lists:
        raise MediaListError(f"--media-root {media_root} goes with a CSV or a text list of media; leave it out")
    sources: list[Source] = []
    for number, place in enumerate(places):
        if isinstance(place, str | os.PathLike):
            sources += find_media(place, media_root if place in lists else None, images=images)
        else:
            assert folder is not None
            sources.append(Source(f"{number:05d}", _written(place, folder / str(number))))
    sources.sort()
    for before, after in itertools.pairwise(sources):
        if before.id == after.id:
            raise MediaListError(f"{before.path} and {after.path} have one id, {before.id!r}; predict them separately")
    return sources


def _is_sound(media: object) -> bool:
    return isinstance(media, tuple) and len(media) == 2 and isinstance(media[1], int | np.integer)


def _storable(dtype: np.dtype[Any]) -> bool:
    return dtype.kind == "f" or dtype in (np.int16, np.int32)


def _written(media: bytes | Sound, path: Path) -> Path:
    """Write a file of media that are in memory: bytes as they are, sound as WAV.

    Raises:
        MediaListError: it is neither.
    """
    if isinstance(media, bytes):
        path.write_bytes(media)
        return path
    if not _is_sound(media):
        raise MediaListError(f"media are paths, bytes or (array, Hz), got {type(media).__name__}")
    from scipy.io import wavfile

    samples, rate = np.asarray(media[0]), int(media[1])
    if samples.ndim not in (1, 2) or not _storable(samples.dtype) or not samples.size or rate < 1:
        raise MediaListError(
            "sound is an array (samples,) or (channels, samples) of floats, int16 or int32, and its rate in Hz; got "
            f"{samples.dtype} of shape {samples.shape} at {rate}"
        )
    samples = samples.astype(np.float32) if samples.dtype.kind == "f" else samples
    wavfile.write(path, rate, samples.T)
    return path
