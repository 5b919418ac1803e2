"""From media to intensities with a trained run: the same path as extraction and training, without a cache."""

import contextlib
import tempfile
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from cache.errors import EmiError
from cache.format import Clip
from cache.paths import StrPath, takes_paths
from emi.media_features import StreamFeatures, extract_together, in_step
from emi.media_sources import Media, list_sources
from extract.batch_computer import ExtractedClip
from extract.failures import Failure, Note
from extract.settings import DEFAULT, DecodeOptions
from extract.sources import Source
from train_head.data.labels import FILENAME
from train_head.errors import RunFolderError, refuse
from train_head.runs.label_rows import NO_CLOCK, has_clock, predict_label_rows
from train_head.runs.load import TrainedHead, load_heads

Record = dict[str, Any]
"""`Filename` (the clip's id) and one float per target."""
OnProgress = Callable[[int, int, float], None]
_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class ClipRows:
    """Predictions of every label row of a clip: (rows, targets) float32 on the labels' scale."""

    id: str
    values: NDArray[np.float32]


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
        label_fps: rows per second of what is predicted per frame; 0 takes the rate of the run.

    Attributes:
        by_frame: whether it predicts every frame (`iterate_rows`) instead of the clip.
        notes: sentences that a user should read.
        media_notes: what the user should know about the files of the last `iterate` (`extract.failures`), so far.
        takes_images: whether a folder of images is a clip: whether a stream is of faces.
        takes_videos: whether such a folder needs its video: for the times of its rows, where faces are of every frame,
            or for a stream of sound.
        stream_failures: the streams that could not be computed of clips which others predicted, with why; so far.

    Raises:
        StaleCacheError: a backbone's weights or configuration are not those the head was trained with.
        RunFolderError: `backbone` names a stream that the run does not have; or it predicts frames, and nothing says
            when they are.
    """

    def __init__(
        self,
        trained: TrainedHead,
        *,
        backbone: str | Mapping[str, str] | None = None,
        device: str = "auto",
        options: DecodeOptions = DEFAULT,
        label_fps: float = 0.0,
    ) -> None:
        self.by_frame, self._label_fps = trained.by_frame, label_fps
        refuse(
            (label_fps and not self.by_frame, f"{trained.folder} predicts a value per clip; leave out --label-fps"),
            (self.by_frame and not label_fps and not has_clock(trained), f"{trained.folder}: {NO_CLOCK}"),
            error=RunFolderError,
        )
        self.trained, self.names, self.label_range = trained, trained.names, trained.label_range
        places = _backbones_by_stream(trained, backbone)
        self._streams = {
            name: StreamFeatures(trained, stream, places.get(name), device, options)
            for name, stream in trained.streams.items()
        }
        self.notes = list(dict.fromkeys(note for stream in self._streams.values() for note in stream.notes))
        streams = self._streams.values()
        self.takes_images = not all(one.hears for one in streams)
        self.takes_videos = self.takes_images and any(one.hears or one.by_picture for one in streams)
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
            UnreadableMediaError: a file cannot be read, or lacks a stream that the run requires; `iterate` carries on
                over those.
            MediaListError: nothing found, or two files with one id.
            RunFolderError: the run predicts every frame.
        """
        return _sorted_records(list(self.iterate(media, media_root)))

    def iterate(self, media: Media | Sequence[Media], media_root: StrPath | None = None) -> Iterator[Record | Failure]:
        """Yield a record per clip as they come, or a failure.

        A clip fails where no stream of it can be computed, or not one that the run requires (`--require`).
        """
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
        refuse(
            (
                self.by_frame,
                f"{self.trained.folder} predicts every frame, and this gives a value per clip; write a file per clip "
                "with `emi predict MEDIA --model RUN --out FOLDER`, or call `iterate_rows`",
            ),
            error=RunFolderError,
        )
        for clips in self._extract(sources, on_progress, done):
            if isinstance(clips, Failure):
                yield clips
            else:
                some, values = next(iter(clips.values())), self.trained.predict(self._stored(clips))
                yield {FILENAME: some.id, **dict(zip(self.names, values.tolist(), strict=True))}

    def iterate_rows(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None, done: Collection[str] = ()
    ) -> Generator[ClipRows | Failure, None, None]:
        """The same for a run that predicts every frame: rows per clip; arguments as of `iterate_sources`."""
        refuse(
            (not self.by_frame, f"{self.trained.folder} predicts a value per clip, and none per frame"),
            error=RunFolderError,
        )
        for clips in self._extract(sources, on_progress, done):
            if isinstance(clips, Failure):
                yield clips
                continue
            note = next(iter(clips.values())).note
            values = predict_label_rows(self.trained, self._stored(clips), self._label_fps)
            missing = "has no rows of the stream whose times are those of the predictions; give --label-fps"
            yield ClipRows(note.id, values) if len(values) else Failure(note.id, note.path, missing)

    def _extract(
        self, sources: Sequence[Source], on_progress: OnProgress | None, done: Collection[str]
    ) -> Iterator[dict[str, ExtractedClip] | Failure]:
        """Yield the features of the streams of each clip, or a failure."""
        self.media_notes.clear()
        self.stream_failures.clear()
        total = sum(source.id not in done for source in sources)
        for number, clips in enumerate(extract_together(self._streams, sources, done), 1):
            failures = {name: clip for name, clip in clips.items() if isinstance(clip, Failure)}
            extracted = {name: clip for name, clip in clips.items() if not isinstance(clip, Failure)}
            if on_progress:
                used = (self._streams[name].used(clip.seconds) for name, clip in extracted.items())
                on_progress(number, total, max(used, default=0.0))
            failure = _lacking(self.trained.require, extracted, failures)
            if failure is not None:
                yield failure
                continue
            for name, failure in failures.items():
                self.stream_failures.append(replace(failure, reason=f"stream {name!r}: {failure.reason}"))
            yield extracted

    def _stored(self, clips: Mapping[str, ExtractedClip]) -> dict[str, Clip]:
        """Return the numbers of a clip that caches would hold."""
        note = next(iter(clips.values())).note
        if note.track or note.cut_off:
            self.media_notes.append(note)
        return {name: self._streams[name].as_stored(clip) for name, clip in clips.items()}


def _lacking(
    require: Sequence[str], clips: Mapping[str, ExtractedClip], failures: Mapping[str, Failure]
) -> Failure | None:
    """Return why a clip cannot be predicted: it has no stream, or lacks a required one; else None."""
    if not clips:
        return next(iter(failures.values()))
    for name in require:
        if name in failures:
            reason = f"lacks the stream {name!r}, which the run requires: {failures[name].reason}"
            return replace(failures[name], reason=reason)
        valid, note = clips[name].valid, clips[name].note
        if valid is not None and not valid.any():
            reason = f"has nothing of the stream {name!r}, which the run requires"
            return Failure(note.id, note.path, reason)
    return None


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
        self.names, self.by_frame = members[0].names, members[0].by_frame
        self.notes = list(dict.fromkeys(note for member in members for note in member.notes))
        self.label_range = members[0].label_range
        self.takes_images = any(member.takes_images for member in members)
        self.takes_videos = any(member.takes_videos for member in members)
        self.media_notes = members[0].media_notes  # all members read the same media
        self.stream_failures = []

    def iterate_sources(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None, done: Collection[str] = ()
    ) -> Generator[Record | Failure, None, None]:
        """As `Model.iterate_sources`; a clip fails if one member cannot predict it."""
        members = [m.iterate_sources(sources, on_progress if not i else None, done) for i, m in self._numbered]
        for records in self._together(members):
            if isinstance(records, Failure):
                yield records
                continue
            values = self._mean([np.array([record[name] for name in self.names]) for record in records])
            yield {FILENAME: records[0][FILENAME], **dict(zip(self.names, values.tolist(), strict=True))}

    def iterate_rows(
        self, sources: Sequence[Source], on_progress: OnProgress | None = None, done: Collection[str] = ()
    ) -> Generator[ClipRows | Failure, None, None]:
        """As `Model.iterate_rows`; of the rows that all members give."""
        members = [m.iterate_rows(sources, on_progress if not i else None, done) for i, m in self._numbered]
        for clips in self._together(members):
            if isinstance(clips, Failure):
                yield clips
                continue
            rows = min(len(clip.values) for clip in clips)
            values = self._mean([clip.values[:rows] for clip in clips])
            yield ClipRows(clips[0].id, values.astype(np.float32))

    @property
    def _numbered(self) -> list[tuple[int, Model]]:
        return list(enumerate(self._members))

    def _mean(self, values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.asarray(sum(weight * value for weight, value in zip(self._weights, values, strict=True)))

    def _together(
        self, members: Sequence[Generator[_Result | Failure, None, None]]
    ) -> Iterator[list[_Result] | Failure]:
        """Yield what all members give of each clip, or the failure of the first that gives none."""
        self.stream_failures.clear()
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())  # last: see `extract_together`
            for running in members:
                stack.callback(running.close)
            known: set[Failure] = set()
            told = [0] * len(members)
            for joined in in_step({str(i): map(_Member, running) for i, running in enumerate(members)}):
                results = [member.result for member in joined.values()]
                for i, member in enumerate(self._members):
                    fresh = [failure for failure in member.stream_failures[told[i] :] if failure not in known]
                    told[i] = len(member.stream_failures)
                    known.update(fresh)
                    self.stream_failures += fresh
                failure = next((result for result in results if isinstance(result, Failure)), None)
                yield failure or results


class _Member:
    """What a member gives of a clip, with its id."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.id: str = result[FILENAME] if isinstance(result, dict) else result.id


@takes_paths
def load(
    run: StrPath,
    *,
    backbone: str | Mapping[str, str] | None = None,
    device: str = "auto",
    options: DecodeOptions = DEFAULT,
    label_fps: float = 0.0,
) -> Model:
    """Load a run folder for prediction.

    Args:
        run: the folder.
        backbone: where the backbone is now, if it was moved.
        device: "auto", "cpu" or "cuda".
        options: what of each file is decoded.
        label_fps: rows per second of what is predicted per frame, where not as the run says.

    Raises:
        RunFolderError: it is no finished run, or an ensemble of several backbones, and `backbone` names one; or its
            runs predict other frames.
        BackboneError: the backbone cannot be found; name its place with `backbone`.
    """
    heads = load_heads(run)
    if len(heads) == 1:
        return Model(heads[0][0], backbone=backbone, device=device, options=options, label_fps=label_fps)
    rates = {head.settings.label_fps for head, _ in heads if head.by_frame}
    refuse(
        (
            backbone is not None,
            f"{run} predicts with {len(heads)} backbones, and --backbone says where one is; leave it out, or put each "
            "where its run was made",
        ),
        (
            len(rates) > 1 and not label_fps,
            f"the runs of {run} have {' and '.join(f'{rate:g}' for rate in sorted(rates))} label rows per second; give "
            "--label-fps",
        ),
        error=RunFolderError,
    )
    members = [Model(head, device=device, options=options, label_fps=label_fps) for head, _ in heads]
    return Models(members, [weight for _, weight in heads])


def _sorted_records(results: Sequence[Record | Failure]) -> list[Record]:
    failures = [result for result in results if isinstance(result, Failure)]
    if failures:
        raise UnreadableMediaError(
            f"{len(failures)} of {len(results)} files cannot be read; the first, {failures[0].path}, "
            f"{failures[0].reason}"
        )
    return sorted((r for r in results if not isinstance(r, Failure)), key=lambda record: record[FILENAME])
