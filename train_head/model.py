"""A trained head loaded from its run folder, or the mean of several."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cache.container import StrPath
from cache.format import Clip, Header
from cache.transform import Transform
from train_head import run_folder
from train_head.derived import load_transform
from train_head.errors import RunFolderError
from train_head.label_format import UNIT, Range
from train_head.predictor import Predictor
from train_head.settings import resolve_settings


class Ensemble(nn.Module):
    """The mean of several predictors' intensities.

    Args:
        members: predictors of the same targets from the same features.
    """

    def __init__(self, members: Sequence["Predictor | Ensemble"]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim) and (batch,) → (batch, targets) float32."""
        return torch.stack([member(frames, lengths) for member in self.members]).mean(0)

    @property
    def has_timeline(self) -> bool:
        """Whether every member gives a value per frame."""
        return all(member.has_timeline for member in self.members)

    def per_frame(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, targets) mean of the members' intensities per frame, where all have them."""
        return torch.stack([member.per_frame(frames, lengths) for member in self.members]).mean(0)  # type: ignore[operator]


@dataclass(frozen=True)
class TrainedHead:
    """A head and what it was trained on.

    Attributes:
        folder: the run folder.
        head: standardisation and head in evaluation mode, or the mean of several such.
        names: the targets.
        features: the run's `[features]` table: dim, vad_names, hop_seconds, source, fingerprint.
        label_range: ends of the labels' scale, on which it predicts.
        transform: what its features were derived with from extracted ones; None where they are extracted ones.
    """

    folder: Path
    head: Predictor | Ensemble
    names: tuple[str, ...]
    features: dict[str, Any]
    label_range: Range = UNIT
    transform: Transform | None = None

    @property
    def header(self) -> Header:
        """Of the cache it was trained on."""
        return Header(
            fingerprint=self.features["fingerprint"],
            dim=self.features["dim"],
            vad_names=tuple(self.features["vad_names"]),
            hop_seconds=self.features["hop_seconds"],
        )

    def predict(self, clip: Clip) -> NDArray[np.float32]:
        """(targets,) float32 for one clip in the cache's dtypes (`Header.stored`)."""
        frames = torch.from_numpy(clip.joined()).float().unsqueeze(0)
        with torch.inference_mode():
            out: NDArray[np.float32] = self.head(frames, torch.tensor([frames.shape[1]]))[0].numpy()
        return out


def load_head(folder: StrPath) -> TrainedHead:
    """Load the best epoch of a run; of a folder with an ensemble.toml, the mean of the runs that it lists.

    Raises:
        RunFolderError: no run folder, or none of its epochs is finished; or members of different targets or features.
    """
    place = Path(folder)
    if (place / run_folder.ENSEMBLE).is_file():
        return _load_ensemble(place)
    config = run_folder.read_config_file(place)
    features = run_folder.read_features(place, config)
    weights = place / run_folder.BEST
    if not weights.is_file():
        raise RunFolderError(f"{place} has no {run_folder.BEST} yet; run `emi train-head` on it to the end")
    settings = resolve_settings(place / run_folder.CONFIG)
    names = tuple(config["data"]["targets"])
    dim = features["dim"] + len(features["vad_names"])
    head = Predictor(settings, dim, len(names))
    head.load_state_dict(run_folder.load_best(place))
    return TrainedHead(place, head.eval(), names, features, settings.label_range, load_transform(place, features))


def own_backbones(folder: StrPath) -> list[Path]:
    """The members of an ensemble of fine-tuned runs, each of which has its backbone; none of any other folder."""
    place = Path(folder)
    if not (place / run_folder.ENSEMBLE).is_file():
        return []
    members = [place / name for name in _listed(place)]
    return members if all((member / run_folder.FEATURES).is_file() for member in members) else []


def _listed(place: Path) -> list[str]:
    path = place / run_folder.ENSEMBLE
    try:
        listed = tomllib.loads(path.read_text(encoding="utf-8")).get("members")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path} is not valid TOML: {error}") from error
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise RunFolderError(f'{path} must list the folders of its runs: members = ["seed-0", "seed-1"]')
    return listed


def _load_ensemble(place: Path) -> TrainedHead:
    path, listed = place / run_folder.ENSEMBLE, _listed(place)
    members = [load_head(place / name) for name in listed]
    first = members[0]
    for name, member in zip(listed, members, strict=True):
        if _kind(member) != _kind(first):
            what = next(k for k, theirs in _kind(member).items() if theirs != _kind(first)[k])
            raise RunFolderError(f"{path} lists {listed[0]} and {name}, whose {what} differ; train them on the same")
    head = Ensemble([member.head for member in members]).eval()
    return TrainedHead(place, head, first.names, first.features, first.label_range, first.transform)


def _kind(member: TrainedHead) -> dict[str, Any]:
    """What the members of an ensemble have in common, by what it is called."""
    return {"targets": member.names, "label ranges": member.label_range, "features": _made(member.features)}


def _made(features: dict[str, Any]) -> dict[str, Any]:
    """What decides the numbers: not the place where the backbone was."""
    return {key: value for key, value in features.items() if key != "source"}
