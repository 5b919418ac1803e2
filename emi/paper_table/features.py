"""What the rows of Table 1 are trained on: caches that were given, or features extracted from media."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.errors import StaleCacheError
from cache.ids import match_ids
from cache.paths import StrPath
from cache.reader import open_cache
from emi.finetuning.settings import FinetuneSettings
from emi.paper_table.rows import AUDIO, FACE, LEARNS
from extract.backbones import identify
from extract.faces.video import has_pictures
from extract.plan import make_header
from extract.run import extract
from extract.settings import ExtractSettings
from extract.sources import find_media
from train_head.data.labels import Labels
from train_head.data.names import Caches, by_stream
from train_head.errors import TrainSettingsError, refuse
from train_head.runs.inputs import LabelFiles, StreamInfo
from train_head.training.loop import Reporter
from train_head.training.settings import TrainSettings

FILES = {AUDIO: "features.zarr", FACE: "faces.zarr"}
"""In the table's folder."""
NO_FACES = "none"
LOOKED_AT = 20
"""Media in which pictures are looked for before any face is."""


@dataclass(frozen=True, kw_only=True)
class TableData:
    """What the table is made from.

    Attributes:
        label_files: label CSVs of "train" and "valid", perhaps "test".
        media: a folder, a CSV or a list, as for extraction; not needed where all features are given.
        backbone: of the audio: name, Hugging Face id or folder; with `media`.
        face_backbone: the same of faces; "none" leaves the rows with faces out.
        media_root: where the paths of a CSV or list start.
        cache: features that are taken instead of extracting them, by stream: audio, face.
    """

    label_files: LabelFiles
    media: StrPath | None = None
    backbone: str | None = None
    face_backbone: str = "mtcnn"
    media_root: StrPath | None = None
    cache: Caches | None = None

    def __post_init__(self) -> None:
        given = self.given
        others = [name for name in given if name not in FILES]
        refuse(
            (bool(others), f"--cache is given as audio=PATH or face=PATH here, got {', '.join(others)}"),
            (self.media is None and not given, "there is nothing to train on; give --media, or --cache NAME=PATH"),
            (
                self.media is None and self.backbone is not None,
                f"--backbone {self.backbone} computes media; give them with --media, or leave it out",
            ),
            (
                self.media is not None and self.backbone is None and AUDIO not in given,
                "--media needs the backbone of its audio; give --backbone, or the features as --cache audio=PATH",
            ),
        )

    @property
    def given(self) -> dict[str, list[StrPath]]:
        """The caches that were given, by stream."""
        return by_stream(self.cache) if self.cache else {}

    def check_backbones(self, lacking: Mapping[str, str]) -> None:
        """Refuse backbones that are not available, or take something else.

        Args:
            lacking: streams that are not extracted.

        Raises:
            TrainSettingsError: one gives another stream.
            BackboneError: one is not available.
        """
        used = {} if self.backbone is None else {AUDIO: ("--backbone", self.backbone)}
        if not lacking.keys() & {FACE} and FACE not in self.given:
            used[FACE] = "--face-backbone", self.face_backbone
        for name, (option, backbone) in used.items():
            if (gives := identify(backbone).modality) != name:
                raise TrainSettingsError(f"{option} {backbone} gives the stream {gives!r}, not {name!r}; name another")

    def lacking(self, tuning: FinetuneSettings) -> dict[str, str]:
        """Return which of audio, face and a learning backbone there are not, each with the reason."""
        found = {}
        if AUDIO not in self.given and self.media is None:
            found[AUDIO] = "there is no --cache audio=PATH, and no --media"
        if FACE not in self.given:
            if self.media is None:
                found[FACE] = "there is no --cache face=PATH, and no --media"
            elif self.face_backbone == NO_FACES:
                found[FACE] = f"--face-backbone {NO_FACES}"
            elif not self._has_pictures():
                found[FACE] = (
                    f"no file looked at in {self.media} has pictures; --cache face=PATH gives features of faces"
                )
        if self.backbone is None:
            found[LEARNS] = "there is no --backbone that could learn"
        elif tuning.freeze == "backbone":
            found[LEARNS] = "--freeze backbone"
        return found

    def _has_pictures(self) -> bool:
        sources = find_media(self.media or "", self.media_root)
        places = np.linspace(0, len(sources) - 1, min(LOOKED_AT, len(sources))).round().astype(int)
        return any(has_pictures(sources[i].path) for i in places)


def extract_features(
    data: TableData,
    stream: str,
    folder: Path,
    settings: TrainSettings,
    tuning: FinetuneSettings,
    labels: Mapping[str, Labels],
    reporter: Reporter,
) -> Path:
    """Extract one stream into the table's folder; audio in the precision and on the device of the unfrozen rows.

    Returns:
        The cache.
    """
    cache = folder / FILES[stream]
    how = ExtractSettings(
        backbone=str(data.backbone) if stream == AUDIO else data.face_backbone,
        max_seconds=tuning.max_seconds,
        precision=settings.precision if stream == AUDIO else "auto",
        device=settings.device,
        media_root=str(data.media_root) if data.media_root is not None else None,
        track=tuning.decoding.track,
        allow_truncated=tuning.allow_truncated,
    )
    try:
        extract(data.media or "", cache, how, on_progress=reporter.clip_decoded)
    except StaleCacheError as error:
        if not whole_by_older_decoder(cache, how, labels):
            raise StaleCacheError(f"{error}; for that, remove {cache}") from error
    return cache


def whole_by_older_decoder(cache: Path, how: ExtractSettings, labels: Mapping[str, Labels]) -> bool:
    """Return whether a cache holds every labelled clip and differs in the decoder only: its rows stay as they are."""
    with open_cache(cache) as store:
        there = dict(store.header.fingerprint)
        wanted = dict(make_header(identify(how.backbone), how, there["precision"]).fingerprint)
        names = [name for part in labels.values() for name in part.filenames]
        held = None not in match_ids(names, store.ids)
    return held and {**there, "decoder": 0} == {**wanted, "decoder": 0}


def shows_faces(caches: Sequence[StrPath], labels: Mapping[str, Labels]) -> bool:
    """Return whether a face was found in any labelled clip of some caches; also where they hold none of the clips."""
    names = [name for part in labels.values() for name in part.filenames]
    held = False
    for path in caches:
        with open_cache(path) as store:
            for clip in filter(None, match_ids(names, store.ids)):
                held, valid = True, store[clip].valid
                if valid is None or valid.any():
                    return True
    return not held


def describe_features(streams: Mapping[str, StreamInfo]) -> str:
    """Return what made the features of a row, and their size: `silero (384); mtcnn (266)`."""
    return "; ".join(f"{info.backbone} ({info.dim})" for info in streams.values())
