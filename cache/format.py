"""Format `emi-features`: the arrays of a segment, their dtypes, and the checksums that guard them.

A cache is a set of segments, each written once. Both containers (Zarr v3 group, HDF5 file) hold the same tree:

    /                      attributes: format, version, fingerprint, dim, vad_names, hop_seconds, provenance,
                           modality where it is not audio, optional where there are optional arrays, extras_crc32c
                           where there are extras, header_crc32c over all of these
    /segments/<name>       attributes: clips, frames, fingerprint_sha256, index_crc32c, and `replaces` where a segment
                           takes the place of others: those, if still there, do not count
    /segments/<name>/...   the arrays of `Header.layout` and `INDEX_ARRAYS`
    /segments/<name>/sources  (clips, 3) int64, optional: which media the clips were made from (`cache.sources`)
    /index/<name>          uint8: what the segments say of their clips, once more, for fast opening (`cache.index`)
    /extras/<name>         numeric arrays that the cache was created with (`cache.derive` keeps its transform there)

A reader without our code needs `segments` only, and may pass over the rest.

`checksums[i]` is the CRC-32C of clip i's stored bytes (little-endian, C order; the arrays in the order of
`Header.layout`). `index_crc32c` guards the arrays that say which bytes belong to which clip.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.errors import CacheFormatError, StaleCacheError
from cache.fingerprint import Fingerprint, canonical, differences
from cache.paths import is_utf8

FORMAT = "emi-features"
VERSION = 2
"""Of a cache with optional arrays; any other has version 1, which earlier versions of emi read."""

INDEX_ARRAYS = ("ids", "offsets", "seconds", "checksums")
"""Small arrays that a reader loads when it opens a cache."""
OPTIONAL = ("times", "valid")
"""Arrays that a cache has where its header declares them."""
NUMBERS = ("frames", "vad", "vad_pooled", *OPTIONAL)
"""Arrays that hold the numbers of clips, in the order of their checksum."""
AUDIO = "audio"
"""The modality of a cache that does not state any."""

OTHER_DECODER = (
    "`decoder` is the version of how emi turns media into sound: another version reads some files differently, such as "
    "those with late sound, gaps or several tracks, so the two are not mixed."
)

DTYPES = ("float16", "float32")
"""In which frames are stored."""
REAL = "fiub"
"""Kinds of NumPy dtypes that can be stored: floats, integers and booleans."""

_BLOCK_ROWS = 1 << 14

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The features of one clip.

    Attributes:
        id: media path under its root, without suffix, `/`-separated.
        frames: (frames, dim) float16 or float32, last hidden state per hop.
        vad: (frames, 3) float32 arousal, dominance, valence per frame, or None.
        vad_pooled: (3,) float32, the regression head on the time mean, or None.
        seconds: length of the medium before the cut to the maximum length; NaN where it is not known.
        times: (frames, 2) float32, start and end of each frame in seconds, or None where frames have a fixed hop.
        valid: (frames,) bool, whether there was something (a face was found); frames that are not valid are zeros. None
            where all are valid.
    """

    id: str
    frames: Array
    vad: Array | None
    vad_pooled: Array | None
    seconds: float
    times: Array | None = None
    valid: Array | None = None

    def joined(self) -> Array:
        """(frames, dim [+ 3]) in the dtype of `frames`: each frame followed by its VAD, the input of a head."""
        return self.frames if self.vad is None else np.concatenate([self.frames, self.vad.astype(self.frames.dtype)], 1)

    def checksum(self) -> int:
        """CRC-32C of the stored bytes."""
        return crc32c(*(array for name in NUMBERS if (array := getattr(self, name)) is not None))


@dataclass(frozen=True, slots=True)
class Layout:
    """How an array of numbers is stored.

    Attributes:
        dtype: of the array.
        shape: of one row.
        by_frame: whether it has a row per frame; else one per clip.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    by_frame: bool = True


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the root of a cache says about all its clips.

    Attributes:
        fingerprint: everything that changes a stored number.
        dim: features per frame.
        vad_names: names of the three regression outputs in stored order, or empty.
        hop_seconds: time from one frame to the next; None where clips have `times` instead.
        provenance: library versions and the like; recorded, never compared.
        modality: what the features were made from: "audio", "face", "text".
        optional: which of `OPTIONAL` every clip has.
    """

    fingerprint: Fingerprint
    dim: int
    vad_names: tuple[str, ...] = ()
    hop_seconds: float | None = 0.02
    provenance: Mapping[str, Any] = field(default_factory=dict)
    modality: str = AUDIO
    optional: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not set(self.optional) <= set(OPTIONAL):
            raise CacheFormatError(f"the optional arrays of a cache are {' and '.join(OPTIONAL)}, got {self.optional}")
        if (self.hop_seconds is None) != ("times" in self.optional):
            raise CacheFormatError("frames have either a hop or times")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Storage dtype of `frames`."""
        return np.dtype(self.fingerprint["dtype"])

    @property
    def width(self) -> int:
        """Return the numbers per frame that a head gets: features, then VAD."""
        return self.dim + len(self.vad_names)

    @functools.cached_property
    def layout(self) -> Mapping[str, Layout]:
        """How the numbers of the clips are stored, in the order of their checksum."""
        single = np.dtype(np.float32)
        layout = {"frames": Layout(self.dtype, (self.dim,))}
        if self.vad_names:
            layout |= {"vad": Layout(single, (3,)), "vad_pooled": Layout(single, (3,), by_frame=False)}
        optional = {"times": Layout(single, (2,)), "valid": Layout(np.dtype(np.bool_), ())}
        return layout | {name: optional[name] for name in OPTIONAL if name in self.optional}

    def duration(self, clip: Clip) -> float:
        """Return the seconds that the frames of a clip cover."""
        if self.hop_seconds is not None:
            return len(clip.frames) * self.hop_seconds
        return 0.0 if clip.times is None else float(clip.times[-1, 1])

    def stored(self, clip: Clip) -> Clip:
        """Cast a clip to the dtypes in which it is stored, which are those that a head must be given.

        Frames that have their dtype already are not copied, unless some that are not valid must be set to zero. VAD is
        stored as float32, but `FeatureCache.load` rounds it to the dtype of the frames, so it has to fit that too.

        Raises:
            CacheFormatError: shapes do not fit this cache, or values are no real numbers, or not finite in the dtype
                they are stored in.
        """
        where = f"clip {clip.id!r}"
        if not clip.id or "\0" in clip.id or not is_utf8(clip.id):
            raise CacheFormatError(f"{where}: an id is UTF-8 text without NUL; rename the file")
        if not (math.isnan(clip.seconds) or 0 <= clip.seconds < math.inf):
            raise CacheFormatError(f"{where}: its length is {clip.seconds} seconds")
        if clip.frames.ndim != 2 or clip.frames.shape[1] != self.dim or not len(clip.frames):
            raise CacheFormatError(f"{where}: frames have shape {clip.frames.shape}, expected (frames, {self.dim})")
        for name in NUMBERS:
            array = getattr(clip, name)
            if array is not None and array.dtype.kind not in REAL:
                raise CacheFormatError(f"{where}: its {name} holds {array.dtype}, expected real numbers")
        times, valid = self._clock(clip, where)
        if valid is not None and not valid.all():
            vad = None if clip.vad is None else np.where(valid[:, None], clip.vad, 0)
            clip = replace(clip, frames=np.where(valid[:, None], clip.frames, 0), vad=vad)
        remedy = "; use --dtype float32" if self.dtype == np.float16 else ""
        with np.errstate(over="ignore"):  # reported below, with the clip's name
            frames = clip.frames.astype(self.dtype, copy=False)
            vad, pooled = (None if a is None else a.astype(np.float32) for a in (clip.vad, clip.vad_pooled))
            rounded = None if vad is None else vad.astype(self.dtype)
        if not _all_finite(frames):
            overflow = np.isfinite(clip.frames).all()
            raise CacheFormatError(
                f"{where}: its features " + (f"overflow {self.dtype}{remedy}" if overflow else "are not finite")
            )
        shapes = [None if a is None else a.shape for a in (clip.vad, clip.vad_pooled)]
        expected = [(len(frames), 3), (3,)] if self.vad_names else [None, None]
        if shapes != expected:
            raise CacheFormatError(f"{where}: vad and vad_pooled have shapes {shapes}, expected {expected}")
        if not all(a is None or np.isfinite(a).all() for a in (vad, pooled)):
            raise CacheFormatError(f"{where}: its vad or vad_pooled is not finite in float32")
        if rounded is not None and not _all_finite(rounded):
            raise CacheFormatError(f"{where}: its vad overflows {self.dtype}, to which heads get it rounded{remedy}")
        return Clip(clip.id, frames, vad, pooled, clip.seconds, times, valid)

    def _clock(self, clip: Clip, where: str) -> tuple[Array | None, Array | None]:
        """Return `times` and `valid` of a clip as they are stored.

        Raises:
            CacheFormatError: they are not what the cache has, or times go backwards.
        """
        found = {name: getattr(clip, name) for name in OPTIONAL}
        for name, array in found.items():
            layout = self.layout.get(name)
            shape = None if array is None else array.shape
            expected = None if layout is None else (len(clip.frames), *layout.shape)
            if shape != expected:
                raise CacheFormatError(f"{where}: its {name} has shape {shape}, expected {expected}")
        times, valid = found["times"], found["valid"]
        if times is not None:
            times = times.astype(np.float32)
            if not np.isfinite(times).all() or (times[:, 0] > times[:, 1]).any() or (np.diff(times[:, 0]) < 0).any():
                raise CacheFormatError(
                    f"{where}: its times are not starts and ends of frames in seconds, in their order"
                )
        return times, None if valid is None else valid.astype(np.bool_)

    def must_match(self, stored: "Header", where: str) -> None:
        """Refuse to mix features made in different ways.

        Raises:
            StaleCacheError: the fingerprint of the cache at `where` is another; names the fields that differ.
            CacheFormatError: its layout is another.
        """
        differing = differences(stored.fingerprint, self.fingerprint)
        if differing:
            decoder = any(field.startswith("decoder ") for field in differing)
            raise StaleCacheError(
                f"{where} holds features made otherwise: {'; '.join(differing)}. "
                + (
                    f"{OTHER_DECODER} Extract all clips into a new --cache path"
                    if decoder
                    else "Choose a new --cache path"
                )
                + (
                    ""
                    if decoder and len(differing) == 1
                    else ", or use the settings the cache was made with (`emi cache info` shows them)"
                )
            )
        if stored.shape != self.shape:
            raise CacheFormatError(
                f"{where} holds {stored.shape}, and {self.shape} were to be added; choose a new --cache path"
            )

    @property
    def shape(self) -> str:
        """Return what a clip consists of, in words."""
        parts = [f"{self.dim} features per frame with {self.vad_names or 'no VAD'}", *self.optional]
        return ", ".join(parts) + (f" of modality {self.modality}" if self.modality != AUDIO else "")

    def to_attributes(self, extras: Mapping[str, Array] | None = None) -> dict[str, Any]:
        """The root attributes as JSON-able values, with a checksum over them and one over the extra arrays."""
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION if self.optional else 1,
            "fingerprint": dict(self.fingerprint),
            "dim": self.dim,
            "vad_names": list(self.vad_names),
            "hop_seconds": self.hop_seconds,
            "provenance": dict(self.provenance),
        }
        if self.modality != AUDIO:
            attributes["modality"] = self.modality
        if self.optional:
            attributes["optional"] = list(self.optional)
        if extras:
            attributes["extras_crc32c"] = extras_crc32c(extras)
        return with_checksum(attributes)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], where: str) -> "Header":
        """Read the root attributes back.

        Raises:
            CacheFormatError: not a feature cache, a later version, or attributes that are incomplete.
        """
        if attributes.get("format") != FORMAT:
            raise CacheFormatError(
                f"{where} is not an {FORMAT} cache (its format is {attributes.get('format')!r}); choose another "
                "path, or make one with `emi extract MEDIA --cache PATH`"
            )
        if attributes.get("version") not in (1, VERSION):
            raise CacheFormatError(
                f"{where} has cache version {attributes.get('version')!r}, and this emi reads versions up to "
                f"{VERSION}; upgrade with `pip install --upgrade emi-mimicry`"
            )
        try:
            if attributes["header_crc32c"] != _header_crc32c(attributes):
                raise ValueError("it does not match its checksum")
            return cls(
                fingerprint=dict(attributes["fingerprint"]),
                dim=int(attributes["dim"]),
                vad_names=tuple(attributes["vad_names"]),
                hop_seconds=None if attributes["hop_seconds"] is None else float(attributes["hop_seconds"]),
                provenance=dict(attributes["provenance"]),
                modality=attributes.get("modality", AUDIO),
                optional=tuple(attributes.get("optional", ())),
            )
        except (KeyError, TypeError, ValueError, CacheFormatError) as error:
            raise CacheFormatError(f"{where} has a damaged header: {error!r}; restore it from a copy") from error


def with_checksum(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return root attributes with the checksum over all of them."""
    return {**attributes, "header_crc32c": _header_crc32c(attributes)}


def _header_crc32c(attributes: Mapping[str, Any]) -> int:
    guarded = {key: value for key, value in attributes.items() if key != "header_crc32c"}
    return int(google_crc32c.value(canonical(guarded).encode()))


def little_endian(array: Array) -> Array:
    """Contiguous little-endian view or copy: the byte order in which every array is stored."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def crc32c(*arrays: Array, start: int = 0) -> int:
    """Return the CRC-32C of the stored bytes of arrays, one after the other, continuing that of what came before."""
    for array in arrays:
        start = google_crc32c.extend(start, little_endian(array) if array.size else b"")
    return int(start)


def index_crc32c(ids: Sequence[str], offsets: Array, seconds: Array, checksums: Array) -> int:
    """CRC-32C over the arrays that say which rows belong to which clip (ids UTF-8, each ended by NUL)."""
    return crc32c(offsets, seconds, checksums, start=google_crc32c.value("".join(f"{i}\0" for i in ids).encode()))


def extras_crc32c(extras: Mapping[str, Array]) -> int:
    """CRC-32C over the extra arrays of a cache: name, dtype, shape and bytes of each, in the order of their names."""
    crc = 0
    for name in sorted(extras):
        array = little_endian(extras[name])
        crc = google_crc32c.extend(crc, f"{name} {array.dtype.str} {array.shape}\0".encode())
        crc = crc32c(array, start=crc)
    return crc


def segment_arrays(clips: Sequence[Clip], frames: Array) -> dict[str, Array]:
    """Lay clips out as the arrays of one segment; `frames` are theirs, joined; `ids` is an object array of str."""
    arrays: dict[str, Array] = {
        "frames": frames,
        "offsets": np.cumsum([0, *(len(clip.frames) for clip in clips)], dtype=np.int64),
        "ids": np.array([clip.id for clip in clips], dtype=object),
        "seconds": np.array([clip.seconds for clip in clips], dtype=np.float64),
        "checksums": np.array([clip.checksum() for clip in clips], dtype=np.uint32),
    }
    for name in NUMBERS[1:]:
        if getattr(clips[0], name) is not None:
            join = np.stack if name == "vad_pooled" else np.concatenate
            arrays[name] = join([getattr(clip, name) for clip in clips])
    return {name: array if name == "ids" else little_endian(array) for name, array in arrays.items()}


def _all_finite(frames: Array) -> bool:
    """Whether no value is infinite or NaN; for float16 by its exponent bits, which is faster. A block at a time."""
    blocks = (frames[i : i + _BLOCK_ROWS] for i in range(0, len(frames), _BLOCK_ROWS))
    if frames.dtype != np.float16:
        return all(np.isfinite(block).all() for block in blocks)
    return all((np.ascontiguousarray(b).view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00 for b in blocks)
