"""The rows of the paper's Table 1 (arXiv 2403.11879): what each reads and trains, and the paper's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cache.paths import StrPath
from train_head.errors import TrainSettingsError
from train_head.protocols import Row, rows_settings
from train_head.training.settings import TrainSettings
from train_head.training.stream_settings import StreamSettings

AUDIO, FACE = "audio", "face"
LEARNS = "unfrozen"
"""What a row needs beside its streams where the audio backbone learns."""
OF_STREAMS = {"fusion": TrainSettings.fusion, "clock": "", "modality_dropout": 0.0, "auxiliary": 0.0}
"""Settings of heads on several streams, and their defaults, which the paper's own rows have."""


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of the paper's table.

    Attributes:
        name: as it is printed.
        folder: of its runs.
        streams: that its head reads.
        overrides: settings of the head that make the row.
        unfrozen: whether the audio backbone learns.
        ours: whether the head is ours, since the paper does not describe its own.
        valid: the paper's mean validation Pearson on Hume-Vidmimic2, where it gives one.
        test: its test figure, where it gives one.
        test_on_all: the same, trained on training and validation clips.
    """

    name: str
    folder: str
    streams: tuple[str, ...] = (AUDIO,)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    unfrozen: bool = False
    ours: bool = False
    valid: float | None = None
    test: float | None = None
    test_on_all: float | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams, and `LEARNS`, without which the row cannot be made."""
        return (*self.streams, LEARNS) if self.unfrozen else self.streams


_LAST_STATE = {"global_vector": False, "dropout": 0.0}
_BOTH_PARTS = {"global_vector": True, "dropout": 0.0}
ROWS = (
    PaperRow(name="baseline: vision", folder="baseline-vision", streams=(FACE,), overrides={"head": "mean"}, test=0.09),
    PaperRow(name="baseline: audio", folder="baseline-audio", overrides={"head": "mean"}, test=0.24),
    PaperRow(
        name="baseline: both",
        folder="baseline-both",
        streams=(AUDIO, FACE),
        overrides={"head": "mean", "fusion": "late"},  # a linear map of both means
        test=0.25,
    ),
    PaperRow(name="vision only", folder="vision", streams=(FACE,), overrides=_LAST_STATE, ours=True, valid=0.031),
    PaperRow(
        name="multimodal", folder="multimodal", streams=(AUDIO, FACE), overrides=_LAST_STATE, ours=True, valid=0.198
    ),
    PaperRow(name="audio, frozen", folder="frozen", overrides=_LAST_STATE, valid=0.262),
    PaperRow(name="+ global vector", folder="global-vector", overrides=_BOTH_PARTS, valid=0.280),
    PaperRow(
        name="+ unfrozen",
        folder="unfrozen",
        overrides=_BOTH_PARTS,
        unfrozen=True,
        valid=0.386,
        test=0.461,
        test_on_all=0.522,
    ),
    PaperRow(
        name="+ dropout",
        folder="dropout",
        overrides={"global_vector": True, "dropout": 0.1},
        unfrozen=True,
        valid=0.389,
        test=0.465,
        test_on_all=0.554,
    ),
)


def row_settings(rows: Sequence[PaperRow], config: StrPath | None = None, **given: Any) -> dict[str, TrainSettings]:
    """Return the settings of each row, by its folder: those that all share, then what makes the row.

    Settings of a stream (`face.hidden`) and of the fusion are for the rows that are ours.

    Raises:
        TrainSettingsError: an unknown setting, or one that no row takes.
    """
    shared = {key: value for key, value in given.items() if "." not in key and key not in ("streams", *OF_STREAMS)}
    if unused := given.keys() - shared.keys() if not any(row.ours for row in rows) else ():
        raise TrainSettingsError(
            f"{min(unused)} is a setting of the rows with faces, which are left out; leave it out too"
        )
    found = {}
    for ours, options in ((False, shared), (True, given)):
        group = [row for row in rows if row.ours is ours]
        fixed: Mapping[str, Any] = {} if ours else OF_STREAMS
        named = [Row(row.name, {**fixed, **row.overrides}) for row in group]
        for row, (_, settings) in zip(group, rows_settings(named, config, **options) if group else (), strict=True):
            of_row = settings.for_streams((AUDIO, FACE)).of_streams(row.streams)
            found[row.folder] = of_row if ours else replace(settings, streams={})
    return found


def describe_head(settings: TrainSettings, row: PaperRow) -> str:
    """Return a row's head in words: `lstm, global vector, dropout 0.1`."""
    texts = {name: _encoder(settings.stream(name)) for name in row.streams}
    alike = len(set(texts.values())) == 1
    text = texts[row.streams[0]] if alike else "; ".join(f"{name}: {part}" for name, part in texts.items())
    joined = f", a head per stream, joined by {settings.fusion}" if len(row.streams) > 1 else ""
    return text + joined + (" (ours)" if row.ours else "")


def _encoder(settings: StreamSettings) -> str:
    if settings.head == "mean":
        return "linear on the time mean"
    options = settings.head_options
    parts = [settings.head, "global vector" if options.get("global_vector") else ""]
    parts += [f"dropout {options['dropout']:g}" if options.get("dropout") else ""]
    return ", ".join(filter(None, parts))
