"""With the backbone frozen, the end-to-end mode is the cached mode: same predictions, same steps."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import emi
from train_head.labels import read_labels

EXACT = {"hidden": 8, "epochs": 2, "lr": 3e-3, "dropout": 0.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}


def values(folder):
    return read_labels(folder / "predictions_valid.csv", check_range=False).values


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("wav2vec2 group", "hubert")]


@pytest.fixture(scope="module", params=["audeering", *SLOW, "wavlm", "silero"])
def backbone(request, tiny, checkpoint, tmp_path_factory):
    if request.param == "audeering":
        return str(checkpoint)
    if request.param == "silero":
        return "silero"
    kind = request.param.split()[0]
    folder = tmp_path_factory.mktemp("other") / kind
    tiny.model(kind, **(tiny.layer_norm if kind == "wavlm" else {})).save_pretrained(folder)
    tiny.save_preprocessor(folder)
    return str(folder)


@pytest.fixture(scope="module")
def cached(backbone, labelled, tmp_path_factory):
    """The cached path in float32: features, and a head on them."""
    root = tmp_path_factory.mktemp("cached")
    emi.extract(labelled / "audio", root / "features.zarr", backbone=backbone, dtype="float32", precision="fp32")
    emi.train_head(root / "features.zarr", labelled / "train.csv", labelled / "valid.csv", root / "head", **EXACT)
    return root


def test_training_on_a_frozen_backbone_takes_the_steps_of_the_cached_mode(backbone, cached, tune, tmp_path):
    tune(tmp_path / "ft", backbone, freeze="backbone", batch_seconds=3.0)
    ours, theirs = (load_file(folder / "best.safetensors") for folder in (tmp_path / "ft", cached / "head"))
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(cached / "head"), rtol=0, atol=1e-5)


def test_a_head_from_the_cache_predicts_the_same_before_the_first_step(backbone, cached, tune, tmp_path):
    """A learning rate that moves nothing shows where the run starts."""
    settings = {"epochs": 1, "lr": 1e-12, "backbone_lr": 1e-12, "weight_decay": 0.0}
    tune(tmp_path / "ft", backbone, init_head=cached / "head", freeze="cnn", backbone_dropout=0.0, **settings)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(cached / "head"), rtol=0, atol=1e-5)


def test_gradients_reach_the_backbone(backbone, tune, tmp_path):
    tune(tmp_path / "ft", backbone, epochs=1, backbone_lr=1e-3, freeze="none")
    tune(tmp_path / "still", backbone, epochs=1, freeze="backbone")
    moved, still = (load_file(tmp_path / name / "model.safetensors") for name in ("ft", "still"))
    fixed = {"stft.weight", "masked_spec_embed"}
    unmoved = {name for name in moved if torch.equal(moved[name], still[name])} - fixed
    assert not unmoved
