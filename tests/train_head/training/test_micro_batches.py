"""Batches that pass through the head in parts: the step of the whole batch, with dropout drawn once."""

import tomllib
from dataclasses import replace

import pytest
import torch

from tests.train_head.training.test_streams import Killed, inputs
from tests.train_head.training.test_streams import data as data  # a fixture
from train_head.errors import TrainSettingsError
from train_head.runs.train import train_run
from train_head.training.trainer import Trainer

HEADS = {
    "lstm": {},
    "tcn": {"block": "weightnorm"},
    "transformer": {"hidden": 8, "pool_frames": 1},
}


def trainer_of(data, frames, **options) -> Trainer:
    source, settings = inputs(data, frames=frames, batch_size=8, **options)
    return Trainer(settings, source.splits["train"], None, None)


@pytest.mark.parametrize("frames", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_those_of_the_whole_batch_for_a_loss_over_all_of_it(data, frames, head):
    shared = {"head": head, "loss": "ccc", "fusion": "transformer", "fusion.dropout": 0.0, "auxiliary": 0.3}
    own = {f"{stream}.dropout": 0.0 for stream in ("audio", "face")}
    found = []
    for micro in (0, 3):
        trainer = trainer_of(data, frames, micro_batch=micro, **shared | own | HEADS[head] | {"fusion.hidden": 8})
        record = trainer.run_epoch(1)
        grads = {name: p.grad for name, p in trainer.predictor.named_parameters() if p.grad is not None}
        found.append((record["train_loss"], grads))
    (loss, grads), (in_parts, grads_in_parts) = found
    assert in_parts == pytest.approx(loss, abs=1e-5)
    assert grads.keys() == grads_in_parts.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grads_in_parts[name], grad, atol=2e-5, rtol=1e-3, msg=lambda t, n=name: f"{n}: {t}")


def test_dropout_is_the_same_when_a_part_is_computed_again(data):
    trainer = trainer_of(data, True, micro_batch=3, head="tcn", block="weightnorm", dropout=0.5, fusion="transformer")
    found = []
    trainer.predictor.head.encoders["audio"].blocks[1].register_forward_hook(
        lambda _, __, states: found.append(states.detach().clone())
    )
    trainer.run_epoch(1)
    first, again = found[:3], found[3:]
    assert [len(part) for part in first] == [3, 3, 2]
    for part, other in zip(first, reversed(again), strict=True):  # gradients go backwards
        assert torch.equal(part, other)
    torch.manual_seed(1)
    trainer.predictor.training_outputs(trainer.train.batch([0, 1, 2]).streams)
    trainer.predictor.training_outputs(trainer.train.batch([0, 1, 2]).streams)
    assert not torch.equal(*found[-2:]), "dropout is on"


def test_a_run_records_it_and_resumes_to_the_same_weights(data, tmp_path):
    source, settings = inputs(data, frames=True, head="tcn", dropout=0.3, micro_batch=3)
    train_run(source, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train_run(source, tmp_path / "killed", settings, reporter=Killed())
    train_run(source, tmp_path / "killed", settings)
    assert tomllib.loads((tmp_path / "whole" / "config.toml").read_text())["micro_batch"] == 3
    whole, killed = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_no_weight_in_bfloat16_is_shared_by_parts_whose_gradients_it_would_sum(data):
    for micro in (0, 3):
        trainer = trainer_of(data, True, head="tcn", precision="bf16", micro_batch=micro)
        found = []
        trainer.predictor.head.encoders["audio"].project.register_forward_hook(
            lambda *_, said=found: said.append(torch.is_autocast_cache_enabled())
        )
        trainer.run_epoch(1)
        assert set(found) == {not micro}


def test_it_is_refused_on_a_gpu_whose_dropout_may_not_come_again(data):
    source, settings = inputs(data, frames=True, micro_batch=3)
    with pytest.raises(TrainSettingsError, match=r"micro_batch \(3\) is for a CPU.*--device cpu"):
        Trainer(replace(settings, device="cuda"), source.splits["train"], None, None)
