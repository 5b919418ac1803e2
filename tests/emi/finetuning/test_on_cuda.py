"""What fine-tuning does on a GPU: as far as a CPU can show it, and on a GPU where there is one."""

import pytest
import torch

from emi.finetuning.processes import Processes
from emi.finetuning.start import on_this_machine
from emi.finetuning.trainer import FinetuneTrainer
from extract.backbones import identify
from train_head.training.settings import TrainSettings


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp16")])
def test_auto_takes_float16_on_a_gpu_that_only_emulates_bfloat16(monkeypatch, checkpoint, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert on_this_machine(TrainSettings(), identify(str(checkpoint))).precision == precision
    assert on_this_machine(TrainSettings(), identify("silero")).precision == "fp32"
    assert on_this_machine(TrainSettings(precision="fp32"), identify(str(checkpoint))).precision == "fp32"


def test_weights_of_the_first_process_reach_the_others_by_way_of_the_cpu(monkeypatch):
    processes = Processes("cpu")
    module = torch.nn.Linear(2, 1)
    processes.copy_first(module)  # alone there is nothing to exchange
    sent = []
    monkeypatch.setattr(processes, "count", 2)
    monkeypatch.setattr(
        processes, "from_first", lambda value: sent.append(value) or {k: v + 1 for k, v in value.items()}
    )
    before = module.weight.detach().clone()
    processes.copy_first(module)
    assert torch.equal(module.weight, before + 1)
    assert {tensor.device.type for tensor in sent[0].values()} == {"cpu"}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_epoch_on_a_gpu_has_the_loss_of_a_cpu(gpu, tune, tmp_path, precision):
    settings = {"freeze": "none", "backbone_dropout": 0.0, "epochs": 1, "batch_size": 28}
    here = tune(tmp_path / "cpu", **settings)
    there = tune(tmp_path / "gpu", **settings | {"device": "cuda", "precision": precision})
    assert there.history[0]["train_loss"] == pytest.approx(
        here.history[0]["train_loss"], rel=1e-4 if precision == "fp32" else 0.03
    )


@pytest.mark.gpu
def test_killed_in_an_epoch_on_a_gpu_it_resumes_where_it_was(gpu, tune, tmp_path, monkeypatch):
    settings = {
        "freeze": "none",
        "device": "cuda",
        "precision": "bf16",
        "dropout": 0.3,
        "save_minutes": 0.0,
        "epochs": 2,
    }
    settings |= {"loss": "0.5*ccc + 0.5*mse", "batch_seconds": 3.0}  # in pieces, each computed twice
    losses = [record["train_loss"] for record in tune(tmp_path / "whole", **settings).history]
    original, left = FinetuneTrainer._step, [5]

    def stops(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(FinetuneTrainer, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "part", **settings)
    monkeypatch.undo()
    part = tune(tmp_path / "part", **settings)
    assert [record["train_loss"] for record in part.history] == pytest.approx(losses, rel=1e-2)
