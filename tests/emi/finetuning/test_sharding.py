"""Two processes that split the weights (FSDP) take the steps of one, and each holds half of what one holds."""

import importlib.util
import json
import socket
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from warm_python import python

from emi.finetuning.trainer import FinetuneTrainer
from train_head.data.labels import read_labels

RUN = """
import json, os, signal, sys
import emi
import torch
from emi.finetuning.processes import Processes
from emi.finetuning.sharding import local
from emi.finetuning.trainer import FinetuneTrainer
folder, audio, left, runs = sys.argv[1:]
left, step, from_first, received = int(left), FinetuneTrainer._step, Processes.from_first, 0
def size(value):
    if isinstance(value, torch.Tensor):
        return 0 if value.is_meta else value.nbytes
    return sum(map(size, value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()))
def counted(processes, value):
    global received
    value = from_first(processes, value)
    received += size(value)
    return value
Processes.from_first = counted
def held(tensors):
    storages = [local(t).untyped_storage() for t in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()), sum(4 * t.numel() for t in tensors)
def watched(trainer, *args):
    global left
    left -= 1
    if left == -1:
        os.kill(os.getpid(), signal.SIGKILL)
    value = step(trainer, *args)
    weights = list(trainer.model.parameters())
    moments = [m for state in trainer.optimizer.state.values() for m in state.values() if m.ndim]
    averaged = [] if trainer.averaged is None else list(trainer.averaged.module.parameters())
    found = {"weights": held(weights), "gradients": held([w.grad for w in weights if w.grad is not None]),
             "moments": held(moments), "averaged": held(averaged), "received": (received, held(weights)[1])}
    with open(f"{out}-{os.environ['RANK']}.json", "w") as file:
        json.dump(found, file)
    return value
FinetuneTrainer._step = watched
files = [f"{folder}/audio", f"{folder}/train.csv", f"{folder}/valid.csv"]
for out, settings in json.loads(runs).items():
    emi.finetune(*files, out, audio=audio, fsdp=True, **settings)
"""
EXACT = {"hidden": 8, "lr": 3e-3, "backbone_lr": 1e-3, "backbone_dropout": 0.0, "dropout": 0.0, "batch_size": 8}
EXACT |= {"precision": "fp32", "device": "cpu", "epochs": 2}
EXACT |= {"batch_seconds": 2.2}  # in a step, and in validation, one process has a piece fewer than the other
EXACT |= {"clip_value": 1e-3}  # Adam's steps alone would be the same with gradients of another scale
KINDS = {
    "audeering": {
        "freeze": "none",
        "loss": "0.5*ccc + 0.5*mse",
        "ema": 0.9,
        "standardise": True,
    },
    "wavlm": {"freeze": "layers:1", "epochs": 1, "head": "attention", "checkpointing": True},
    "group": {"freeze": "none", "epochs": 1},
    "silero": {"freeze": "none", "epochs": 1},
    "lora": {"freeze": "backbone", "lora": 2, "epochs": 1},
}
if importlib.util.find_spec("peft") is None:
    del KINDS["lora"]


@pytest.fixture(scope="module")
def backbones(tiny, checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("kinds")
    for name, kind, norm in (("wavlm", "wavlm", tiny.layer_norm), ("group", "wav2vec2", {})):
        tiny.model(kind, **norm).save_pretrained(root / name)
        tiny.save_preprocessor(root / name)
    return {
        "audeering": checkpoint,
        "lora": checkpoint,
        "silero": "silero",
        "wavlm": root / "wavlm",
        "group": root / "group",
    }


@pytest.fixture(scope="module")
def sharded(labelled, audio):
    """Train in two processes, to the end or until they are killed before a step."""

    def sharded(runs, root, kill_at=-1):
        (root / "run.py").write_text(RUN)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        start = [python(), "-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port]
        arguments = [root / "run.py", labelled, audio, kill_at, json.dumps(runs, default=str)]
        done = subprocess.run(list(map(str, [*start, *arguments])), capture_output=True, text=True, timeout=250)
        assert (done.returncode == 0) == (kill_at < 0), done.stdout + done.stderr

    return sharded


@pytest.fixture(scope="module")
def kinds(sharded, backbones, tmp_path_factory):
    """The folder of a finished run of each kind."""
    root = tmp_path_factory.mktemp("sharded")
    runs = {str(root / name): EXACT | own | {"backbone": backbones[name]} for name, own in KINDS.items()}
    sharded(runs, root)
    return root


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal_runs(one, two):
    """Losses and predictions agree, and weights in the mean: moved by 3e-3 or more, they differ by less than 1e-4.

    Single weights may differ by more: where a gradient is next to nothing, rounding decides in which direction AdamW
    moves. It is nothing but rounding for the biases of keys, which the softmax cancels.
    """
    for ours, theirs in zip(records(two), records(one), strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-4)
        assert ours["valid_pearson"] == pytest.approx(theirs["valid_pearson"], abs=2e-3)
        assert ours["frozen_stages"] == theirs["frozen_stages"]
    a, b = (read_labels(out / "predictions_valid.csv", check_range=False) for out in (one, two))
    np.testing.assert_allclose(a.values, b.values, rtol=0, atol=1e-4)
    for name in ("model.safetensors", "best.safetensors"):
        ours, theirs = load_file(two / name), load_file(one / name)
        assert ours.keys() == theirs.keys()
        differences = [(ours[key] - theirs[key]).double().flatten() for key in theirs if "k_proj.bias" not in key]
        assert float(torch.cat(differences).square().mean().sqrt()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_sharded_processes_take_the_steps_of_one(kinds, kind, tune, backbones, tmp_path):
    """Also where each has several pieces to compute for a step, and where one has fewer than the other."""
    tune(tmp_path / "one", backbones[kind], **EXACT | KINDS[kind])
    assert_equal_runs(tmp_path / "one", kinds / kind)


def test_each_process_holds_half(kinds):
    """Of weights, gradients, moments and their average; what is padded to be halved comes on top."""
    for rank in (0, 1):
        found = json.loads((kinds / f"audeering-{rank}.json").read_text())
        for what in ("weights", "gradients", "moments", "averaged"):
            here, whole = found[what]
            assert 0.4 * whole < here < 0.6 * whole, what


def test_killed_a_run_goes_on_sharded_and_then_whole_again(sharded, tune, checkpoint, tmp_path, monkeypatch):
    """Thawing from the top, above stages that are computed apart; saved at every step."""
    settings = EXACT | {"freeze": "layers:10", "unfreeze_every": 1, "epochs": 4, "save_minutes": 0.0}
    one, two = tmp_path / "one", tmp_path / "two"
    tune(one, **settings)
    step = FinetuneTrainer._step

    def stopped(trainer, rows, share, epoch, number):
        if (epoch, number) == (2, 1):
            raise KeyboardInterrupt
        return step(trainer, rows, share, epoch, number)

    monkeypatch.setattr(FinetuneTrainer, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        tune(two, **settings)
    monkeypatch.undo()
    sharded({str(two): settings | {"backbone": checkpoint}}, tmp_path, kill_at=5)
    assert len(records(two)) == 2
    received, whole = json.loads((tmp_path / "two-1.json").read_text())["received"]
    assert received < 0.01 * whole  # the second process read its part only
    tune(two, **settings)
    assert_equal_runs(one, two)


@pytest.mark.slow
def test_killed_and_started_again_sharded_it_gives_the_same_bytes(sharded, checkpoint, tmp_path):
    """With all that is drawn at random, killed within an epoch and after one."""
    drawn = {"dropout": 0.3, "backbone_dropout": 0.1, "spec_augment": True, "noise_snr": 10.0, "ema": 0.9}
    settings = EXACT | drawn | {"unfreeze_every": 1, "save_minutes": 0.0, "backbone": checkpoint}
    one, two = tmp_path / "one", tmp_path / "two"
    sharded({str(one): settings}, tmp_path)
    for steps in (1, 3):
        sharded({str(two): settings}, tmp_path, kill_at=steps)
    sharded({str(two): settings}, tmp_path)
    for name in ("model.safetensors", "best.safetensors", "predictions_valid.csv"):
        assert (two / name).read_bytes() == (one / name).read_bytes()
