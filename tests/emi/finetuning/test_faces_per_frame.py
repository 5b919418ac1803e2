"""A face backbone learns from labels per frame, in windows: the steps of the cached mode, and predictions per frame."""

import json
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from warm_python import python

import emi
from cache.errors import EmiError
from emi.media_sources import list_sources
from tests.emi.finetuning.drawn_faces import STILL, save_iresnet, write_trials
from train_head.errors import TrainSettingsError

FPS = 5
HOW = {
    "head": "tcn",
    "hidden": 4,
    "layers": 1,
    "dropout": 0.0,
    "loss": "0.5*ccc + 0.5*mse",
    "label_range": (-1, 1),
    "label_fps": FPS,
    "window": 8,
    "hop": 6,
    "batch_size": 3,
    "epochs": 2,
    "lr": 3e-3,
    "precision": "fp32",
    "device": "cpu",
}
FACES = {"fps": FPS, "max_seconds": "none"}


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    root = tmp_path_factory.mktemp("trials")
    write_trials(root, {"1": 21, "2_left": 14, "2_right": 17, "3": 5, "v1": 19, "v2": 11}, seed=0)
    save_iresnet(root / "iresnet")
    return root


def tune(trials, out, **settings):
    files = (trials / "cropped_aligned", trials / "train", trials / "valid")
    given = {"backbone": str(trials / "iresnet"), "crops": trials / "crops", **HOW, **FACES, **settings}
    return emi.finetune(*files, out, **given)


def values(folder):
    return {path.stem: path.read_text() for path in sorted((folder / "predictions_valid").iterdir())}


def numbers(folder):
    files = sorted((folder / "predictions_valid").iterdir())
    return np.concatenate([np.loadtxt(file, delimiter=",", skiprows=1) for file in files])


@pytest.mark.parametrize("missing", ["mask", "nearest"])
def test_with_a_frozen_backbone_it_takes_the_steps_of_the_cached_mode(trials, tmp_path, missing):
    place, gradients = tmp_path / "f.zarr", {"ours": [], "theirs": []}
    how = {**HOW, "standardise": True, "missing": missing}
    emi.extract(
        trials / "cropped_aligned",
        place,
        backbone=str(trials / "iresnet"),
        dtype="float32",
        precision="fp32",
        fps=FPS,
        max_seconds=None,
    )

    def collect(name):
        def hook(optimizer, *_):
            if not gradients[name]:
                gradients[name] += [p.grad.clone() for p in optimizer.param_groups[0]["params"]]

        return register_optimizer_step_pre_hook(hook)

    handle = collect("theirs")
    emi.train_head(place, trials / "train", trials / "valid", tmp_path / "head", **how)
    handle.remove()
    handle = collect("ours")
    tune(trials, tmp_path / "ft", freeze="backbone", batch_crops=9, standardise=True, missing=missing, **STILL)
    handle.remove()
    largest = max(float(gradient.abs().max()) for gradient in gradients["theirs"])
    for our, their in zip(gradients["ours"], gradients["theirs"], strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=2e-5 * largest)
    np.testing.assert_allclose(numbers(tmp_path / "ft"), numbers(tmp_path / "head"), rtol=0, atol=1e-3)


def test_pieces_change_no_gradient_of_a_loss_over_all_label_rows(trials, tmp_path):
    found = []
    for at_once in (9, 1000):
        seen = []

        def hook(optimizer, *_, seen=seen):
            seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

        handle = register_optimizer_step_pre_hook(hook)
        tune(trials, tmp_path / str(at_once), batch_crops=at_once, backbone_dropout=0.0, epochs=1, **STILL)
        handle.remove()
        found.append(seen[0])
    largest = max(float(gradient.abs().max()) for gradient in found[1])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=2e-3, atol=1e-5 * largest)


def test_two_processes_take_the_steps_of_one(trials, tmp_path, warm_children):
    for processes in (1, 2):
        how = {"processes": processes, "batch_crops": 9, "backbone_dropout": 0.0, "backbone_lr": 1e-3}
        tune(trials, tmp_path / str(processes), **how, **STILL)
    np.testing.assert_allclose(numbers(tmp_path / "2"), numbers(tmp_path / "1"), rtol=0, atol=1e-2)
    first = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[0]) for n in ("1", "2")]
    assert first[1]["train_loss"] == pytest.approx(first[0]["train_loss"], abs=1e-3)


@pytest.fixture(scope="module")
def trained(trials, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "ft"
    tune(trials, out, freeze="layers:3", backbone_lr=1e-3)
    return out


def test_it_predicts_every_frame_of_folders_of_images(trials, trained, tmp_path):
    model = emi.load(trained)
    with_sources = list_sources(trials / "cropped_aligned", None, tmp_path, images=True)
    found = {clip.id: clip.values for clip in model.iterate_rows(with_sources)}
    assert set(found) == {"1", "2_left", "2_right", "3", "v1", "v2"}
    validated = numbers(trained)
    np.testing.assert_allclose(np.concatenate([found["v1"], found["v2"]]), validated, atol=1e-4)


def test_windows_of_long_clips_are_what_goes_through_the_backbone(trials, tmp_path, monkeypatch):
    from emi.finetuning.modalities import Faces

    rows, original = [], Faces.open

    def watched(self, *how):
        clips = original(self, *how)
        inputs = clips.inputs

        def counted(stream, samples, noise):
            found = inputs(stream, samples, noise)
            rows.append(max(len(one.computed) for one in found))
            return found

        clips.inputs = counted
        return clips

    monkeypatch.setattr(Faces, "open", watched)
    tune(trials, tmp_path / "ft", epochs=1)
    assert max(rows) == HOW["window"]


def test_a_head_of_the_cache_is_where_it_starts(trials, tmp_path):
    exact = {"backbone": str(trials / "iresnet"), "dtype": "float32", "precision": "fp32"}
    emi.extract(trials / "cropped_aligned", tmp_path / "f.zarr", fps=FPS, max_seconds=None, **exact)
    emi.train_head(tmp_path / "f.zarr", trials / "train", trials / "valid", tmp_path / "cached", **HOW)
    still = {"lr": 1e-12, "weight_decay": 0.0, "backbone_lr": 1e-12, "epochs": 1, "backbone_dropout": 0.0}
    tune(trials, tmp_path / "ft", init_head=tmp_path / "cached", **{**STILL, **still})
    np.testing.assert_allclose(numbers(tmp_path / "ft"), numbers(tmp_path / "cached"), atol=1e-4)
    for other in ({"fps": 10.0}, {"crop": "square"}):
        with pytest.raises(TrainSettingsError, match=f"was trained on other rows of faces: {next(iter(other))} "):
            tune(trials, tmp_path / "other", init_head=tmp_path / "cached", **other)


def test_a_head_on_clips_and_augmentation_that_moves_rows_are_refused(trials, tmp_path):
    with pytest.raises(TrainSettingsError, match="mixup and frame_dropout move rows"):
        tune(trials, tmp_path / "ft", frame_dropout=0.1)
    with pytest.raises(EmiError, match="mean"):
        tune(trials, tmp_path / "ft", head="mean", hidden=None, layers=None, dropout=None)


RUN = """
import os, signal, sys
import emi
from emi.finetuning import trainer
root, out, number = sys.argv[1:]
left, original = int(number), trainer.FinetuneTrainer._step
def dies(*args, **more):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **more)
if int(number) >= 0:
    trainer.FinetuneTrainer._step = dies
emi.finetune(f"{root}/cropped_aligned", f"{root}/train", f"{root}/valid", out, backbone=f"{root}/iresnet",
             crops=f"{root}/crops", save_minutes=0.0, freeze="layers:3", backbone_lr=1e-3, ema=0.9, batch_crops=9,
             **eval(os.environ["HOW"]))
"""
FILES = ("model.safetensors", "best.safetensors", "features.toml")


def test_killed_at_any_step_it_gives_the_same_bytes(trials, tmp_path):
    program = python()
    environment = os.environ | {"HOW": repr({**HOW, **FACES})}
    for name, steps in (("a", [-1]), ("b", [1, 2, -1])):
        for number in steps:
            command = [program, "-c", RUN, trials, tmp_path / name / "ft", number]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
            assert done.returncode == (0 if number < 0 else -signal.SIGKILL), done.stderr
    one, two = (tmp_path / name / "ft" for name in ("a", "b"))
    assert {name: (two / name).read_bytes() for name in FILES} == {name: (one / name).read_bytes() for name in FILES}
    assert values(one) == values(two)
    records = [
        [json.loads(line)["train_loss"] for line in (r / "metrics.jsonl").read_text().splitlines()] for r in (one, two)
    ]
    assert records[0] == records[1]
    assert not torch.equal(
        load_file(one / "model.safetensors")["attention.local.0.weight"],
        load_file(trials / "iresnet" / "model.safetensors")["attention.local.0.weight"],
    )
