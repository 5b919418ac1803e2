"""Killed at any step, the same command gives the same weights, to the byte."""

import os
import signal
import subprocess

import pytest
from warm_python import python

RUN = """
import os, signal, sys
import emi
from emi.finetuning import trainer, export, frozen
folder, out, checkpoint, audio, where, number = sys.argv[1:]
left = int(number)
homes = {"step": (trainer.FinetuneTrainer, "_step"), "state": (trainer.run_folder, "save_state"),
         "best": (trainer, "save_file"), "kept": (frozen.FrozenOutputs, "put"),
         "backbone": (export, "identify"), "head": (export, "save_file")}
home, name = homes[where]
original = getattr(home, name)
def dies(*args, **more):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **more)
if int(number) >= 0:
    setattr(home, name, dies)
emi.finetune(f"{folder}/audio", f"{folder}/train.csv", f"{folder}/valid.csv", out, backbone=checkpoint, audio=audio,
             hidden=8, epochs=3, lr=3e-3, dropout=0.3, batch_size=8, batch_seconds=3.0, precision="fp32", device="cpu",
             backbone_lr=1e-3, backbone_dropout=0.1, layerdrop=0.2, unfreeze_every=1, ema=0.9,
             loss="0.5*ccc + 0.5*mse", standardise=True, save_minutes=0.0, **eval(os.environ["MORE"]))
"""
MORE = {
    "augmented": "dict(spec_augment=True, noise_snr=10.0, speed=0.1)",
    "remembered": "dict(freeze='layers:10')",
    "beside a cache": "dict(cache={'slow': os.environ['SLOW']}, noise=0.1, **{'slow.head': 'mean'})",
}
FILES = ("model.safetensors", "best.safetensors", "features.toml", "predictions_valid.csv")


@pytest.fixture(scope="module", params=MORE)
def go(request, labelled, checkpoint, audio, slow):
    program = python()  # which adds to the environment
    environment = os.environ | {"MORE": MORE[request.param], "SLOW": str(slow)}

    def go(out, where="step", number=-1):
        command = [program, "-c", RUN, labelled, out, checkpoint, audio, where, number]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=250, env=environment)

    return go


@pytest.fixture(scope="module")
def uninterrupted(go, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "ft"
    done = go(out)
    assert done.returncode == 0, done.stderr
    return {name: (out / name).read_bytes() for name in FILES} | {"losses": losses(out)}


def losses(out):
    import json

    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(record["train_loss"], record["valid_pearson"], record["frozen_stages"]) for record in records]


def test_killed_in_the_middle_of_a_batch_of_kept_outputs_it_gives_the_same_bytes(labelled, checkpoint, audio, tmp_path):
    program = python()  # which adds to the environment
    environment = os.environ | {"MORE": MORE["remembered"]}
    for name, where, numbers in (("a", "step", [-1]), ("b", "kept", [3, 9, -1])):
        for number in numbers:
            command = [program, "-c", RUN, labelled, tmp_path / name / "ft", checkpoint, audio, where, number]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
            assert done.returncode == (0 if number < 0 else -signal.SIGKILL), done.stderr
    one, two = (tmp_path / name / "ft" for name in ("a", "b"))
    assert {name: (two / name).read_bytes() for name in FILES} == {name: (one / name).read_bytes() for name in FILES}


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ("step", [1, 3]),
        pytest.param("step", [4, 2], marks=pytest.mark.slow),
        ("head", [0]),
        pytest.param("state", [0, 5], marks=pytest.mark.slow),
        pytest.param("best", [0, 1], marks=pytest.mark.slow),
        pytest.param("backbone", [0], marks=pytest.mark.slow),
    ],
)
def test_killed_and_started_again_it_gives_the_same_bytes(go, uninterrupted, tmp_path, where, numbers):
    out = tmp_path / "ft"
    for number in numbers:
        killed = go(out, where, number)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = go(out)
    assert done.returncode == 0, done.stderr
    assert losses(out) == uninterrupted["losses"]
    assert {name: (out / name).read_bytes() for name in FILES} == {name: uninterrupted[name] for name in FILES}
    assert not [path for pattern in ("best_so_far*", "frozen*", "*.tmp") for path in out.glob(pattern)]
