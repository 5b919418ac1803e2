"""Numbers below float32's normal range count as zeros while a head is trained on a CPU, in every thread."""

import os
import subprocess

import torch
from warm_python import python

import emi
from train_head.training.trainer import Trainer

PROGRAM = """
import torch
from train_head.training.denormals import denormals_as_zeros

def tiny():
    return torch.full((1 << 20,), 1e-38) * 0.1  # in all threads of torch

assert torch.get_num_threads() == 2 and (tiny() > 0).all()
with denormals_as_zeros():
    assert not tiny().any()
    assert torch.tensor(1.2e-38) * 1 > 0
assert (tiny() > 0).all()
"""


def test_every_thread_of_torch_counts_tiny_numbers_as_zeros_for_a_while():
    command = [python(), "-c", PROGRAM]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr


def test_an_epoch_is_trained_so(labelled, labelled_cache, tmp_path, monkeypatch):
    found = []
    step = Trainer._step

    def noted(self, *arguments):
        found.append(float(torch.tensor(1e-38) * 0.1))
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "_step", noted)
    emi.train_head(labelled_cache, labelled / "train.csv", labelled / "valid.csv", tmp_path / "run", hidden=8, epochs=1)
    assert found
    assert not any(found)
    assert float(torch.tensor(1e-38) * 0.1) > 0
