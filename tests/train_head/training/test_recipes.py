"""The recipes in configs/ train on two streams."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.train import train_run
from train_head.training.predictor import Predictor
from train_head.training.settings import resolve_settings

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("name", ["concat", "frozen-streams"])
def test_a_recipe_for_several_streams_trains(tmp_path, name):
    rng = np.random.default_rng(0)
    for stream, dim in (("audio", 5), ("face", 3)):
        header = Header(fingerprint={"backbone": stream, "dtype": "float32"}, dim=dim, hop_seconds=0.1)
        with CacheWriter(tmp_path / f"{stream}.zarr", header) as writer:
            for i in range(24):
                writer.add(Clip(f"{i:05d}", rng.normal(size=(6, dim)).astype(np.float32), None, None, 0.6))
    for split, part in (("train", range(16)), ("valid", range(16, 24))):
        (tmp_path / f"{split}.csv").write_text("Filename,Joy\n" + "".join(f"{i},{i / 24:.3f}\n" for i in part))
    caches = {stream: tmp_path / f"{stream}.zarr" for stream in ("audio", "face")}
    settings = resolve_settings(CONFIGS / f"{name}.toml", epochs=2, device="cpu", precision="fp32")
    files = LabelFiles.named(tmp_path / "train.csv", tmp_path / "valid.csv")
    result = train_run(gather_inputs(caches, files), tmp_path / "run", settings)
    assert np.isfinite([record["train_loss"] for record in result.history]).all()


def test_the_recipes_have_the_shapes_that_were_published():
    concat = Predictor(resolve_settings(CONFIGS / "concat.toml"), {"audio": 1027, "face": 768}, 6)
    first, last = (layer for layer in concat.head.fusion.modules() if isinstance(layer, nn.Linear))
    assert (first.in_features, first.out_features, last.out_features) == (1795, 1795, 6)
    frozen = Predictor(resolve_settings(CONFIGS / "frozen-streams.toml"), {"audio": 1024, "face": 768}, 6)
    first, last = (layer for layer in frozen.head.fusion.modules() if isinstance(layer, nn.Linear))
    assert (first.in_features, first.out_features, last.out_features) == (1792, 256, 6)
