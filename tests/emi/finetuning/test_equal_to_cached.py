"""With the backbone frozen, the end-to-end mode is the cached mode: same predictions, same gradients.

Weights after several steps are not compared: where a gradient is next to nothing, AdamW moves its weight by about the
learning rate in a direction that rounding decides.
"""

import contextlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import emi
from train_head.data.labels import read_labels

EXACT = {"hidden": 8, "epochs": 2, "lr": 3e-3, "dropout": 0.0, "batch_size": 8, "precision": "fp32", "device": "cpu"}


def values(folder):
    return read_labels(folder / "predictions_valid.csv", check_range=False).values


@contextlib.contextmanager
def first_gradients():
    """Collect the head's gradients at the first step, in the order of its parameters."""
    found = []

    def collect(optimizer, *_):
        if not found:
            found.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])

    handle = register_optimizer_step_pre_hook(collect)
    try:
        yield found
    finally:
        handle.remove()


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
    files = (root / "features.zarr", labelled / "train.csv", labelled / "valid.csv")
    with first_gradients() as gradients:
        emi.train_head(*files, root / "head", **EXACT)
    return root, gradients


def test_training_on_a_frozen_backbone_takes_the_steps_of_the_cached_mode(backbone, cached, tune, tmp_path):
    """Gradients of the first step to float32's rounding; predictions of a run that has taken eight steps."""
    root, theirs = cached
    with first_gradients() as ours:
        tune(tmp_path / "ft", backbone, freeze="backbone", batch_seconds=3.0)
    names = [load_file(folder / "best.safetensors").keys() for folder in (tmp_path / "ft", root / "head")]
    assert names[0] == names[1]
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(root / "head"), rtol=0, atol=1e-4)


def test_a_head_from_the_cache_predicts_the_same_before_the_first_step(backbone, cached, tune, tmp_path):
    """A learning rate that moves nothing shows where the run starts."""
    head = cached[0] / "head"
    settings = {"epochs": 1, "lr": 1e-12, "backbone_lr": 1e-12, "weight_decay": 0.0}
    tune(tmp_path / "ft", backbone, init_head=head, freeze="cnn", backbone_dropout=0.0, **settings)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(head), rtol=0, atol=1e-5)


def test_gradients_reach_the_backbone(backbone, tune, tmp_path):
    tune(tmp_path / "ft", backbone, epochs=1, backbone_lr=1e-3, freeze="none")
    tune(tmp_path / "still", backbone, epochs=1, freeze="backbone")
    moved, still = (load_file(tmp_path / name / "model.safetensors") for name in ("ft", "still"))
    fixed = {"stft.weight", "masked_spec_embed"}
    unmoved = {name for name in moved if torch.equal(moved[name], still[name])} - fixed
    assert not unmoved
