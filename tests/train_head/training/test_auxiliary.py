"""A loss of each stream's own in training: what it adds, and that prediction does not know of it."""

import tomllib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import mse_loss

from tests.train_head.training.test_fusions import OPTIONS, some_missing
from tests.train_head.training.test_streams import SMALL, Killed, inputs
from tests.train_head.training.test_streams import data as data  # a fixture
from train_head.heads.fusions import FUSIONS
from train_head.losses import build_objective
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import load_head
from train_head.runs.train import train_run
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

QUICK = SMALL | {"head": "gru", "hidden": 4, "epochs": 2}


def weights(folder):
    return load_file(folder / "best.safetensors")


@pytest.mark.parametrize("frames", [False, True])
def test_a_weight_of_0_is_no_auxiliary_loss_to_the_last_byte(data, tmp_path, frames):
    for name, given in (("absent", {}), ("zero", {"auxiliary": 0.0}), ("some", {"auxiliary": 0.03})):
        source, settings = inputs(data, frames=frames, **QUICK | given)
        train_run(source, tmp_path / name, settings)
    files = [path.relative_to(tmp_path / "zero") for path in (tmp_path / "zero").rglob("*") if path.is_file()]
    same = [file for file in files if file.suffix in (".csv", ".txt", ".safetensors", ".toml")]
    assert len(same) >= 3
    for file in same:
        assert (tmp_path / "zero" / file).read_bytes() == (tmp_path / "absent" / file).read_bytes(), file
    assert "auxiliary" not in tomllib.loads((tmp_path / "zero" / "config.toml").read_text())
    assert tomllib.loads((tmp_path / "some" / "config.toml").read_text())["auxiliary"] == 0.03
    zero, some = weights(tmp_path / "zero"), weights(tmp_path / "some")
    assert zero.keys() < some.keys()
    assert not all(torch.equal(zero[name], some[name]) for name in zero)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("frames", [False, True])
def test_the_loss_of_each_stream_is_that_of_a_linear_layer_on_its_summary_or_states(data, frames, fusion):
    given = {"auxiliary": 0.5, "fusion": fusion, **OPTIONS[fusion], **({"clock": ""} if frames else {})}
    source, settings = inputs(data, frames=frames, **QUICK | given)
    trainer = Trainer(settings, source.splits["train"], None, None)
    predictor = trainer.predictor.eval()
    batch = trainer.train.batch([0, 3, 5])
    outputs, targets = predictor.training_outputs(batch.streams), batch.targets
    together = predictor.outputs(batch.streams)
    if frames:
        labelled = ~targets.isnan().all(dim=-1)
        outputs, targets, together = outputs[labelled], targets[labelled], together[labelled]
    expected = mse_loss(together, targets)
    for name, rows in batch.streams.items():
        encoded = predictor.head.encoders[name](rows.frames, rows.lengths)
        seen = encoded.summary
        if frames:
            seen = torch.stack([state[row.clamp(min=0)] for state, row in zip(encoded.states, rows.at, strict=True)])
            seen = seen[labelled]
            assert (rows.at[labelled] >= 0).all()
        expected = expected + 0.5 * mse_loss(predictor.auxiliary[name](seen), targets)
    torch.testing.assert_close(trainer.objective(outputs, targets), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("frames", [False, True])
def test_prediction_does_not_depend_on_the_regressors_of_the_streams(data, tmp_path, frames):
    source, settings = inputs(data, frames=frames, **QUICK | {"auxiliary": 0.3, "ema": 0.5})
    result = train_run(source, tmp_path / "run", settings)
    state = weights(tmp_path / "run")
    own = [name for name in state if name.startswith("auxiliary.")]
    assert len(own) == 4
    save_file(
        state | {name: torch.full_like(state[name], torch.nan) for name in own}, tmp_path / "run" / "best.safetensors"
    )
    trainer = Trainer(settings, source.splits["train"], None, None)
    trainer.evaluated.load_state_dict(load_head(tmp_path / "run").head.state_dict())
    np.testing.assert_array_equal(trainer.predict(source.splits["valid"]), result.predictions["valid"])


def test_a_clip_that_lacks_a_stream_does_not_count_in_its_loss(data, tmp_path):
    caches = some_missing(data, tmp_path)  # 00003 lacks `face`
    source = gather_inputs(caches, LabelFiles.named(data / "train.csv", data / "valid.csv"))
    trainer = Trainer(resolve_settings(**QUICK | {"auxiliary": 1.0}), source.splits["train"], None, None)
    batch = trainer.train.batch([1, 3, 6])
    outputs = trainer.predictor.training_outputs(batch.streams)
    assert outputs.isnan().tolist() == [[False] * 6, [False] * 4 + [True] * 2, [False] * 6]
    found = trainer.objective(outputs, batch.targets)
    parts = outputs.split(2, dim=1)
    there = [0, 2]
    expected = mse_loss(parts[0], batch.targets) + mse_loss(parts[1], batch.targets)
    torch.testing.assert_close(found, expected + mse_loss(parts[2][there], batch.targets[there]))
    found.backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all() for parameter in trainer.predictor.parameters()
    )


def test_the_terms_of_the_loss_their_ramp_and_two_columns_per_target_hold_for_it():
    generator = torch.Generator().manual_seed(0)
    targets = torch.rand(6, 2, generator=generator)
    outputs = torch.randn(6, 12, generator=generator)  # two columns per target, of the head and of two streams
    loss = "zero_inflated + 0.5*ccc(ramp=4)"
    plain, more = (build_objective(loss, "lds", targets, weight) for weight in (0.0, 0.25))
    for epoch in (1, 3, 9):
        plain.epoch = more.epoch = epoch
        first, *own = (plain(part, targets) for part in outputs.split(4, dim=1))
        torch.testing.assert_close(more(outputs, targets), first + 0.25 * sum(own))


def test_a_run_with_it_resumes_to_the_same_weights(data, tmp_path):
    options = QUICK | {"auxiliary": 0.1, "modality_dropout": 0.4, "ema": 0.9, "loss": "mse + 0.1*pearson(ramp=2)"}
    source, settings = inputs(data, frames=False, **options)
    train_run(source, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train_run(source, tmp_path / "killed", settings, reporter=Killed())
    assert train_run(source, tmp_path / "killed", settings).resumed_at == 1
    one, other = (weights(tmp_path / name) for name in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("frames", [False, True])
def test_one_stream_has_no_loss_beside_that_of_the_head(data, frames):
    source, settings = inputs(data, frames=frames, names=("audio",), **QUICK | {"auxiliary": 0.1})
    assert not len(Trainer(settings, source.splits["train"], None, None).predictor.auxiliary)
