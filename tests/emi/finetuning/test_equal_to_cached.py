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
BESIDE = {"fusion": {"hidden": 8, "dropout": 0.0}, "slow.head": "mean", "slow.standardise": True}
"""Settings of a head that reads a cached stream too."""
STILL = {"epochs": 1, "lr": 1e-12, "weight_decay": 0.0}
"""A learning rate that moves nothing shows where a run starts."""


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
def features(backbone, labelled, tmp_path_factory):
    """A cache in float32, as the end-to-end mode computes."""
    path = tmp_path_factory.mktemp("cached") / "features.zarr"
    emi.extract(labelled / "audio", path, backbone=backbone, dtype="float32", precision="fp32")
    return path


@pytest.fixture(scope="module")
def cached(features, labelled):
    """The cached path in float32: features, and a head on them."""
    with first_gradients() as gradients:
        emi.train_head(features, labelled / "train.csv", labelled / "valid.csv", features.parent / "head", **EXACT)
    return features.parent, gradients


def assert_same_steps(run, ours, head, theirs):
    """Gradients of the first step to float32's rounding; predictions of runs that have taken eight steps."""
    names = [load_file(folder / "best.safetensors").keys() for folder in (run, head)]
    assert names[0] == names[1]
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5 * largest)
    np.testing.assert_allclose(values(run), values(head), rtol=0, atol=1e-4)


def test_training_on_a_frozen_backbone_takes_the_steps_of_the_cached_mode(backbone, cached, tune, tmp_path):
    root, theirs = cached
    with first_gradients() as ours:
        tune(tmp_path / "ft", backbone, freeze="backbone", batch_seconds=3.0)
    assert_same_steps(tmp_path / "ft", ours, root / "head", theirs)


def test_so_it_does_beside_a_cached_stream_that_some_clips_lack(backbone, features, slow, tune, labelled, tmp_path):
    streams = {"slow": slow, "audio": features}
    files = (labelled / "train.csv", labelled / "valid.csv")
    for name, settings in (("run", {}), ("start", STILL)):
        with first_gradients() as theirs:
            emi.train_head(streams, *files, tmp_path / f"head-{name}", **EXACT | BESIDE | settings)
        with first_gradients() as ours:
            how = {"cache": {"slow": slow}, "freeze": "backbone", "batch_seconds": 3.0}
            tune(tmp_path / name, backbone, **how, **BESIDE | settings)
        assert_same_steps(tmp_path / name, ours, tmp_path / f"head-{name}", theirs)
    np.testing.assert_allclose(values(tmp_path / "start"), values(tmp_path / "head-start"), rtol=0, atol=1e-5)
    again = {"init_head": tmp_path / "head-run", "freeze": "cnn", "backbone_dropout": 0.0, "backbone_lr": 1e-12}
    tune(tmp_path / "again", backbone, cache=f"slow={slow}", **again, **STILL)
    np.testing.assert_allclose(values(tmp_path / "again"), values(tmp_path / "head-run"), rtol=0, atol=1e-5)


def test_a_head_from_the_cache_predicts_the_same_before_the_first_step(backbone, cached, tune, tmp_path):
    head = cached[0] / "head"
    tune(tmp_path / "ft", backbone, init_head=head, freeze="cnn", backbone_dropout=0.0, backbone_lr=1e-12, **STILL)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(head), rtol=0, atol=1e-5)


def test_gradients_reach_the_backbone(backbone, tune, tmp_path):
    tune(tmp_path / "ft", backbone, epochs=1, backbone_lr=1e-3, freeze="none")
    tune(tmp_path / "still", backbone, epochs=1, freeze="backbone")
    moved, still = (load_file(tmp_path / name / "model.safetensors") for name in ("ft", "still"))
    fixed = {"stft.weight", "masked_spec_embed"}
    unmoved = {name for name in moved if torch.equal(moved[name], still[name])} - fixed
    assert not unmoved
