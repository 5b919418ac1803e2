"""Media as `Model.predict` takes them: folders, lists, files, bytes, and sound as an array."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from cache.paths import StrPath
from extract.errors import MediaListError
from extract.sources import Source, find_media, is_list

Sound = tuple[ArrayLike, int]
"""Samples and their rate in Hz."""
Media = StrPath | bytes | Sound
MOST_CHANNELS = 64
"""An array with more rows than this, and no more columns, is taken for one of samples by channels."""


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
    if samples.ndim == 2 and len(samples) > MOST_CHANNELS >= samples.shape[1]:
        raise MediaListError(
            f"sound is an array (samples,) or (channels, samples); one of shape {samples.shape} looks like (samples, "
            "channels), as soundfile.read returns it: give its transpose, array.T"
        )
    samples = samples.astype(np.float32) if samples.dtype.kind == "f" else samples
    wavfile.write(path, rate, samples.T)
    return path
