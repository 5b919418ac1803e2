"""Crops of drawn faces with labels, and small IResNets: what fine-tuning on faces is tried on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from emi.demo.drawing import Identity, Pose, draw, find_landmarks
from extract.backbones.checkpoint import save_checkpoint
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.network import IResNet
from extract.faces.align import crops, onto_template

TINY = IResNetConfig(units=(1, 1, 1, 1), widths=(4, 8, 8, 12), dim=16, reduction=3)
EXACT = {"head": "mean", "epochs": 2, "lr": 3e-3, "batch_size": 4, "precision": "fp32", "device": "cpu"}
STILL = {"flip": 0.0, "random_crop": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
"""No augmentation."""


def save_iresnet(folder: Path, config: IResNetConfig = TINY, seed: int = 0) -> Path:
    """Save an IResNet with random weights, whose LA-SE does something."""
    torch.manual_seed(seed)
    network = IResNet(config)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.dim() > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
            elif name.startswith("attention."):
                value.uniform_(0.0, 0.3)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    save_checkpoint(folder, tensors, config.to_dict())
    return folder


def picture(identity: int, smile: float, jaw: float, rng: np.random.Generator):
    """(112, 112, 3) uint8 aligned crop of one face; smile from -1 to 1, jaw from 0 to 1."""
    centre = (0.5 + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.03, 0.03))
    pose = Pose(smile=smile, jaw=jaw, roll=rng.uniform(-6, 6), centre=centre, size=0.75)
    size = 144, 144
    image = draw([(Identity.of(identity), pose)], *size)
    marks = find_landmarks(Identity.of(identity), pose, *size)[None]
    return crops(image[None], onto_template(marks))[0]


def write_clips(root: Path, clips: int, seed: int, rows: int = 3, people: int = 1000) -> dict[str, np.ndarray]:
    """Write `face_images/<id>/0.jpg…`; return by id what each face shows: smile and jaw, in [0, 1].

    Args:
        root: to write to.
        clips: their number.
        seed: of the first clip; clip `i` shows person `(seed + i) % people`.
        rows: pictures per clip, and one more of every second clip; the second of every third clip is missing.
        people: their number.
    """
    rng, shown = np.random.default_rng(seed), {}
    for clip in range(clips):
        name = f"{seed + clip:05d}"
        folder = root / name
        folder.mkdir(parents=True)
        smile, jaw = rng.uniform(-1, 1), rng.uniform(0, 1)
        for row in range(rows + clip % 2):
            if clip % 3 == 0 and row == 1:
                continue
            image = picture((seed + clip) % people, smile, jaw, rng)
            Image.fromarray(image).save(folder / f"{row}.jpg", quality=95)
        shown[name] = np.array([smile / 2 + 0.5, jaw])
    return shown


def write_labels(path: Path, shown: dict[str, np.ndarray]) -> Path:
    """Write a CSV of labels per clip."""
    lines = [f"{name},{smile:.4f},{jaw:.4f}" for name, (smile, jaw) in shown.items()]
    path.write_text("\n".join(["Filename,Smile,Jaw", *lines, ""]))
    return path


def write_trials(root: Path, trials: dict[str, int], seed: int) -> None:
    """Write `cropped_aligned/<trial>/00001.jpg…` and `<split>/<trial>.txt` as Aff-Wild2 has them.

    A picture in ten is missing, and a row in eight has no label; rows are frames.

    Args:
        root: to write to; the folder of the annotations is `valid` for trials whose name begins with v, else `train`.
        trials: frames by name.
        seed: of the first person.
    """
    rng = np.random.default_rng(seed)
    for person, (trial, frames) in enumerate(trials.items()):
        time = np.arange(frames)
        valence, arousal = (np.sin(time / rng.uniform(2, 5) + rng.uniform(0, 6)) for _ in range(2))
        folder = root / "cropped_aligned" / trial
        folder.mkdir(parents=True)
        lines = ["valence,arousal"]
        for frame in range(frames):
            if frame % 10 != 7:
                image = picture(seed + person, valence[frame], arousal[frame] / 2 + 0.5, rng)
                Image.fromarray(image).save(folder / f"{frame + 1:05d}.jpg", quality=95)
            values = (-5, -5) if frame % 8 == 3 else (round(valence[frame], 3), round(arousal[frame], 3))
            lines.append("{},{}".format(*values))
        place = root / ("valid" if trial.startswith("v") else "train")
        place.mkdir(exist_ok=True)
        (place / f"{trial}.txt").write_text("\n".join([*lines, ""]))
