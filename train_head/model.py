"""A trained head loaded from its run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from cache.container import StrPath
from cache.format import Clip, Header
from cache.transform import Transform
from train_head import run_folder
from train_head.derived import load_transform
from train_head.errors import RunFolderError
from train_head.heads import build_head
from train_head.settings import resolve_settings


@dataclass(frozen=True)
class TrainedHead:
    """A head and what it was trained on.

    Attributes:
        folder: the run folder.
        head: the module in evaluation mode.
        names: the targets.
        features: the run's `[features]` table: dim, vad_names, hop_seconds, source, fingerprint.
        transform: what its features were derived with from extracted ones; None where they are extracted ones.
    """

    folder: Path
    head: nn.Module
    names: tuple[str, ...]
    features: dict[str, Any]
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
    """Load the best epoch of a run.

    Raises:
        RunFolderError: no run folder, or none of its epochs is finished.
    """
    place = Path(folder)
    config = run_folder.read_config_file(place)
    weights = place / run_folder.BEST
    if not weights.is_file():
        raise RunFolderError(f"{place} has no {run_folder.BEST} yet; run `emi train-head` on it to the end")
    settings = resolve_settings(place / run_folder.CONFIG)
    features, names = config["features"], tuple(config["data"]["targets"])
    dim = features["dim"] + len(features["vad_names"])
    head = build_head(settings.head, dict(settings.head_options), dim, len(names))
    head.load_state_dict(load_file(weights))
    return TrainedHead(place, head.eval(), names, features, load_transform(place, features))
