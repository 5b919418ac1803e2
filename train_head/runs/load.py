"""A trained head loaded from its run folder, or the mean of several."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.derive.transform import Transform
from cache.format import AUDIO, Clip, Header
from cache.paths import StrPath
from train_head.data.label_format import Range
from train_head.data.streams import Rows, Stream
from train_head.errors import RunFolderError
from train_head.runs import run_folder
from train_head.runs.inputs import load_transform
from train_head.runs.smoothing import Smoothing, read_smoothing
from train_head.targets import FRAME
from train_head.toml_file import read_toml
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings, resolve_settings

ROW_SETTINGS = ("window", "hop", "overlap", "label_fps", "missing")
"""What decides how label rows are predicted, beside the head."""


class Ensemble(nn.Module):
    """The mean of several predictors' intensities.

    Args:
        members: predictors of the same targets from the same features.
        weights: what each counts in the mean; all alike by default.
    """

    def __init__(self, members: Sequence["Predictor | Ensemble"], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._weights = None if weights is None or len(set(weights)) == 1 else [w / sum(weights) for w in weights]

    def forward(self, streams: Mapping[str, Rows]) -> Tensor:
        """Rows of every stream → (batch, targets) or (batch, label rows, targets) float32."""
        return self._mean([member(streams) for member in self.members])

    def _mean(self, values: list[Tensor]) -> Tensor:
        if self._weights is None:
            return torch.stack(values).mean(0)
        return torch.stack([w * value for w, value in zip(self._weights, values, strict=True)]).sum(0)

    @property
    def weights(self) -> list[float]:
        """What each member counts in the mean; they sum to 1."""
        return self._weights or [1 / len(self.members)] * len(self.members)

    @property
    def by_frame(self) -> bool:
        """Whether the members predict every label row."""
        return all(member.by_frame for member in self.members)

    @property
    def reach(self) -> tuple[int, int] | None:
        """Rows before and after its own on which a value per row depends; None for the whole clip."""
        reaches = [cast(Predictor, member).reach for member in self.members]
        known = [reach for reach in reaches if reach is not None]
        if len(known) < len(reaches):
            return None
        return max(before for before, _ in known), max(after for _, after in known)

    @property
    def has_timeline(self) -> bool:
        """Whether every member gives a value per frame."""
        return all(member.has_timeline for member in self.members)

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, targets) mean of the members' intensities per frame, where all have them."""
        return self._mean([member.per_frame(frames, lengths) for member in self.members])  # type: ignore[operator]


@dataclass(frozen=True)
class TrainedStream:
    """A stream that a head was trained on.

    Attributes:
        features: the run's table `[features]`, or `[features.NAME]`: dim, vad_names, hop_seconds, source, fingerprint.
        transform: what its features were derived with from extracted ones; None where they are extracted ones.
    """

    features: dict[str, Any]
    transform: Transform | None = None

    @property
    def header(self) -> Header:
        """Of the cache it was trained on."""
        return Header(
            fingerprint=self.features["fingerprint"],
            dim=self.features["dim"],
            vad_names=tuple(self.features["vad_names"]),
            hop_seconds=self.features.get("hop_seconds"),
            modality=self.features.get("modality", AUDIO),
            optional=tuple(self.features.get("optional", ())),
        )


@dataclass(frozen=True)
class TrainedHead:
    """A head and what it was trained on.

    Attributes:
        folder: the run folder.
        head: standardisation and head in evaluation mode, or the mean of several such.
        names: the targets.
        streams: what it reads, by name.
        settings: how it was trained; of several runs, the first's.
        require: names of streams that every clip must have.
        smoothing: how its predictions per label row are smoothed; of several runs, those of each.
        centre: whether predictions per label row of several runs are moved to a common level before the mean.
    """

    folder: Path
    head: Predictor | Ensemble
    names: tuple[str, ...]
    streams: Mapping[str, TrainedStream]
    settings: TrainSettings
    require: tuple[str, ...] = ()
    smoothing: tuple[Smoothing | None, ...] = (None,)
    centre: bool = False

    @property
    def label_range(self) -> Range:
        """Ends of the labels' scale, on which it predicts."""
        return self.settings.label_range

    @property
    def by_frame(self) -> bool:
        """Whether it predicts every label row."""
        return self.head.by_frame

    @property
    def only(self) -> TrainedStream:
        """The stream, where there is one."""
        (stream,) = self.streams.values()
        return stream

    def predict(self, clips: Clip | Mapping[str, Clip | None]) -> NDArray[np.float32]:
        """Predict one clip.

        Args:
            clips: its features in the cache's dtypes (`Header.stored`), by stream where there are several; None where
                there is nothing of one.

        Returns:
            (targets,) float32.
        """
        given = clips if isinstance(clips, Mapping) else dict.fromkeys(self.streams, clips)
        streams = {name: _rows(given.get(name), stream.header) for name, stream in self.streams.items()}
        with torch.inference_mode():
            out: NDArray[np.float32] = self.head(streams)[0].numpy()
        return out


def load_head(folder: StrPath) -> TrainedHead:
    """Load the best epoch of a run; of a folder with an ensemble.toml, the mean of the runs that it lists.

    Raises:
        RunFolderError: no run folder, or none of its epochs is finished; or members of different targets or features.
    """
    heads = load_heads(folder)
    if len(heads) > 1:
        raise _unlike(Path(folder), heads[0][0], heads[1][0], "features")
    return heads[0][0]


def load_heads(folder: StrPath) -> list[tuple[TrainedHead, float]]:
    """Load the heads that predict together, one for all members with the same features, with weights that sum to 1.

    Members that predict every frame also need the same windows. A member that was fine-tuned has a backbone of its own,
    and so features of its own.

    Raises:
        RunFolderError: see `load_head`; features may differ.
    """
    place = Path(folder)
    loaded = [(_load_run(member), weight) for member, weight in members_of(place)]
    first = loaded[0][0]
    groups: dict[str, list[tuple[TrainedHead, float]]] = {}
    for head, weight in loaded:
        if head.names != first.names:
            raise _unlike(place, first, head, "targets")
        if head.label_range != first.label_range:
            raise _unlike(place, first, head, "label ranges")
        own = head.folder if (head.folder / run_folder.FEATURES).is_file() else ""
        made = {
            name: {key: value for key, value in stream.features.items() if key not in ("source", "revision")}
            for name, stream in head.streams.items()
        }
        rows = [getattr(head.settings, key) for key in ROW_SETTINGS] + [head.head.reach] if head.by_frame else []
        groups.setdefault(f"{own} {json.dumps([made, rows], sort_keys=True)}", []).append((head, weight))
    centre = is_centred(place)
    if centre and len(groups) > 1:
        one, other, *_ = [group[0][0] for group in groups.values()]
        raise _unlike(place, one, other, "features or windows, which cannot be centred,")
    return [_together(place, group, centre=centre) for group in groups.values()]


def is_centred(folder: Path) -> bool:
    """Whether the predictions of the runs that a folder lists are centred before the mean."""
    path = folder / run_folder.ENSEMBLE
    return path.is_file() and read_toml(path, "list of runs", RunFolderError).get("centre") is True


def _unlike(place: Path, one: TrainedHead, other: TrainedHead, what: str) -> RunFolderError:
    names = [os.path.relpath(head.folder, place) for head in (one, other)]
    return RunFolderError(
        f"{place / run_folder.ENSEMBLE} lists {names[0]} and {names[1]}, whose {what} differ; train them on the same"
    )


def members_of(folder: Path, within: tuple[Path, ...] = ()) -> list[tuple[Path, float]]:
    """Return the single runs in a folder, each with its weight, which sum to 1: itself, or those of its ensemble.toml.

    Raises:
        RunFolderError: the list is damaged, a member is gone, or the folder lists itself.
    """
    if not (folder / run_folder.ENSEMBLE).is_file():
        return [(folder, 1.0)]
    if folder.resolve() in within:
        raise RunFolderError(f"{folder / run_folder.ENSEMBLE} lists itself; name the runs in it")
    names, weights = _listed(folder)
    found: list[tuple[Path, float]] = []
    for name, weight in zip(names, weights, strict=True):
        place = folder / name
        if not place.is_dir():
            raise RunFolderError(
                f"{folder / run_folder.ENSEMBLE} lists {name}, and there is no run at {os.path.abspath(place)}; put it "
                "back, or make the ensemble again from where its runs are now (`emi ensemble`)"
            )
        if is_centred(place):
            raise RunFolderError(
                f"{folder / run_folder.ENSEMBLE} lists {name}, whose runs are centred before their mean; within "
                "another mean they cannot be, so make the ensemble of its runs"
            )
        inner = members_of(place, (*within, folder.resolve()))
        found += [(member, own * weight / sum(weights)) for member, own in inner]
    return found


def _listed(place: Path) -> tuple[list[str], list[float]]:
    path = place / run_folder.ENSEMBLE
    content = read_toml(path, "list of runs", RunFolderError)
    listed = content.get("members")
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise RunFolderError(f'{path} must list the folders of its runs: members = ["seed-0", "seed-1"]')
    weights = content.get("weights", [1.0] * len(listed))
    numbers = isinstance(weights, list) and all(isinstance(w, int | float) and 0 < w < math.inf for w in weights)
    if not numbers or len(weights) != len(listed):
        raise RunFolderError(f"{path} must give each of its {len(listed)} runs a weight above 0, or none of them")
    return listed, weights


def _load_run(place: Path) -> TrainedHead:
    config = run_folder.read_config_file(place)
    features = run_folder.read_features(place, config)
    if not (place / run_folder.BEST).is_file():
        raise RunFolderError(f"{place} has no {run_folder.BEST} yet; run `emi train-head` on it to the end")
    settings = resolve_settings(place / run_folder.CONFIG)
    names = tuple(config["data"]["targets"])
    streams = {name: TrainedStream(table, load_transform(place, name, table)) for name, table in features.items()}
    dims = {name: stream.header.width for name, stream in streams.items()}
    head = Predictor(settings, dims, len(names), by_frame=config["data"].get("resolution") == FRAME)
    head.load_state_dict(run_folder.load_best(place))
    require = tuple(config["data"].get("require", ()))
    return TrainedHead(place, head.eval(), names, streams, settings, require, (read_smoothing(place),))


def clip_stream(name: str, clip: Clip | None, header: Header) -> Stream:
    """Return a stream of one clip; a row of zeros that is not its own where there is nothing of it.

    Args:
        name: of the stream.
        clip: its features in the cache's dtypes, or None.
        header: of the cache.
    """
    if clip is None:
        times = torch.zeros(1, 2) if header.hop_seconds is None else None
        start, length = torch.tensor([0]), torch.tensor([0])
        return Stream(name, torch.zeros(1, header.width), start, length, header.hop_seconds, times)
    rows = torch.from_numpy(clip.joined())
    times, valid = (None if part is None else torch.from_numpy(part) for part in (clip.times, clip.valid))
    return Stream(name, rows, torch.tensor([0]), torch.tensor([len(rows)]), header.hop_seconds, times, valid)


def _rows(clip: Clip | None, header: Header) -> Rows:
    """Return the valid rows of one clip; one of zeros that counts for nothing where there are none."""
    if clip is None or (clip.valid is not None and not clip.valid.any()):
        return Rows(torch.zeros(1, 1, header.width), torch.zeros(1, dtype=torch.int64), times=torch.zeros(1, 1, 2))
    stream = clip_stream("", clip, header).only_valid()
    (frames,) = stream.chunks()
    return Rows(
        frames.float().unsqueeze(0),
        stream.lengths,
        hop=stream.hop,
        times=None if stream.times is None else stream.times.unsqueeze(0),
    )


def _together(place: Path, group: list[tuple[TrainedHead, float]], *, centre: bool) -> tuple[TrainedHead, float]:
    """Join heads with the same features into one."""
    (first, _), weights = group[0], [weight for _, weight in group]
    if len(group) == 1:
        return group[0]
    head = Ensemble([member.head for member, _ in group], weights).eval()
    require = tuple(sorted({name for member, _ in group for name in member.require}))
    smoothing = tuple(one for member, _ in group for one in member.smoothing)
    together = replace(first, folder=place, head=head, require=require, smoothing=smoothing, centre=centre)
    return together, sum(weights)
