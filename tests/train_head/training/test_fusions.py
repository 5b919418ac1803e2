"""Training with each fusion, and with streams left out at random."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import emi
from cache.format import Clip, Header
from cache.writer import CacheWriter
from tests.train_head.training.test_streams import NAMES, SMALL, Killed, inputs
from tests.train_head.training.test_streams import data as data  # a fixture
from train_head.data.splits import Batch
from train_head.data.streams import Rows
from train_head.errors import TrainSettingsError
from train_head.heads.fusions import FUSIONS
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import load_head
from train_head.runs.train import train_run
from train_head.training.augment import augment_batch
from train_head.training.augment_settings import AugmentSettings
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

OPTIONS = {
    "concat": {"fusion.activation": "gelu"},
    "late": {},
    "crossattention": {"fusion.query": "face", "fusion.width": 8},
    "transformer": {"clock": "face", "fusion.hidden": 8, "fusion.layers": 1},
}
"""By fusion, settings; a run folder must record them."""


def test_the_options_are_of_every_fusion():
    assert OPTIONS.keys() == FUSIONS.keys()


def some_missing(data, folder):
    """Caches in which `face` lacks a training clip and one that is predicted."""
    with emi.open_cache(data / "face.zarr") as store, CacheWriter(folder / "face.zarr", store.header) as writer:
        for clip in store.ids:
            if clip not in ("00003", "00009"):
                writer.add(store[clip])
    return {"audio": data / "audio.zarr", "face": folder / "face.zarr"}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_of_two_caches_predicts_from_them_again_and_resumes_to_the_same_weights(data, tmp_path, fusion):
    given = SMALL | {"head": "gru", "fusion": fusion, "modality_dropout": 0.3, "noise": 0.1} | OPTIONS[fusion]
    options = given | {"epochs": 2}
    caches, labels = some_missing(data, tmp_path), (data / "train.csv", data / "valid.csv")
    result = emi.train_head(caches, *labels, tmp_path / "whole", **options)
    trained = load_head(tmp_path / "whole")
    stores = {name: emi.open_cache(path) for name, path in caches.items()}
    for clip, expected in zip(("00008", "00009", "00010", "00011"), result.predictions["valid"], strict=True):
        found = trained.predict({name: store[clip] for name, store in stores.items() if clip in store})
        np.testing.assert_allclose(found, expected, atol=1e-5)
    sources = gather_inputs(caches, LabelFiles.named(*labels))
    with pytest.raises(KeyboardInterrupt):
        train_run(sources, tmp_path / "killed", resolve_settings(**options), reporter=Killed())
    again = emi.train_head(caches, *labels, tmp_path / "killed", **options)
    assert again.resumed_at == 1
    one, other = (load_file(tmp_path / run / "best.safetensors") for run in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one.keys() | other.keys())
    np.testing.assert_array_equal(again.predictions["valid"], result.predictions["valid"])


def with_gaps(data, folder):
    """Caches of which `face` has times instead of a hop, and frames in which nothing was found."""
    rng = np.random.default_rng(1)
    header = Header(
        fingerprint={"backbone": "video", "dtype": "float32"}, dim=2, hop_seconds=None, optional=("times", "valid")
    )
    with CacheWriter(folder / "face.zarr", header) as writer:
        for number in range(12):
            starts = np.sort(rng.uniform(0, 2.4, 9)).astype(np.float32)
            times = np.stack([starts, np.append(starts[1:], 2.5)], axis=1).astype(np.float32)
            valid = rng.uniform(size=9) > (1.1 if number in (2, 10) else 0.3)
            frames = np.where(valid[:, None], rng.normal(size=(9, 2)), 0).astype(np.float32)
            writer.add(Clip(f"{number:05d}", frames, None, None, 2.5, times=times, valid=valid))
    return {"audio": data / "audio.zarr", "face": folder / "face.zarr"}


@pytest.mark.parametrize("clock", NAMES)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_frames_with_times_of_their_own_are_joined_in_a_batch_as_in_a_clip_alone(data, tmp_path, fusion, clock):
    caches = with_gaps(data, tmp_path)
    sources = gather_inputs(caches, LabelFiles.named(data / "train.csv", data / "valid.csv"))
    of_fusion = {"clock": clock} if FUSIONS[fusion].by_times else {}
    settings = resolve_settings(**(SMALL | {"head": "gru", "fusion": fusion, "epochs": 1} | of_fusion))
    result = train_run(sources, tmp_path / "run", settings)
    trained = load_head(tmp_path / "run")
    stores = {name: emi.open_cache(path) for name, path in caches.items()}
    for row, clip in enumerate(sources.splits["valid"].labels.ids):
        found = trained.predict({name: store[clip] for name, store in stores.items()})
        np.testing.assert_allclose(found, result.predictions["valid"][row], atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_labels_per_frame_of_two_streams_are_trained_and_predicted(data, tmp_path, fusion):
    options = {"head": "tcn", "layers": 2, "window": 10, "hop": 6, "modality_dropout": 0.2, "loss": "ccc", "lr": 1e-2}
    given = OPTIONS[fusion] | ({} if fusion == "late" else {"fusion.dropout": 0.1})
    sources, settings = inputs(data, frames=True, fusion=fusion, **options, **given)
    result = train_run(sources, tmp_path / "run", settings)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert np.isfinite(result.predictions["valid"]).all()
    options |= {"overlap": "valid", "hop": 1, "window": 40}
    _, strict = inputs(data, frames=True, fusion=fusion, **options, **given)
    if FUSIONS[fusion].row_by_row:
        assert Trainer(strict, sources.splits["train"], None, None).predictor.reach == (3, 3)
    else:
        with pytest.raises(TrainSettingsError, match="head or fusion a row depends on the whole clip"):
            Trainer(strict, sources.splits["train"], None, None)


def test_one_named_stream_can_have_a_transformer_behind_its_encoder(data, tmp_path):
    caches, labels = {"audio": data / "audio.zarr"}, (data / "train.csv", data / "valid.csv")
    options = SMALL | {"head": "tcn", "fusion": "transformer", "fusion.hidden": 8}
    result = emi.train_head(caches, *labels, tmp_path / "run", **options)
    with emi.open_cache(data / "audio.zarr") as store:
        found = load_head(tmp_path / "run").predict(store["00008"])
    np.testing.assert_allclose(found, result.predictions["valid"][0], atol=1e-5)
    with pytest.raises(TrainSettingsError, match=r"fusion 'transformer' joins named streams.*--cache NAME=PATH"):
        emi.train_head(data / "audio.zarr", *labels, tmp_path / "unnamed", **options)


def test_a_clock_that_is_no_stream_is_refused_and_the_nearest_named():
    with pytest.raises(TrainSettingsError, match=r"unknown stream in clock 'fase'; did you mean 'face'"):
        resolve_settings(clock="fase").for_streams(NAMES)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_clock_is_refused_where_labels_are_of_clips_and_the_fusion_has_none(data, tmp_path, fusion):
    caches, labels = {name: data / f"{name}.zarr" for name in NAMES}, (data / "train.csv", data / "valid.csv")
    sources, settings = inputs(data, frames=False, head="gru", fusion=fusion)
    predictor = Trainer(settings, sources.splits["train"], None, None).predictor
    assert FUSIONS[fusion].by_times == predictor.needs_clock
    if not predictor.needs_clock:
        with pytest.raises(TrainSettingsError, match=f"the fusion '{fusion}' does not join streams by the times"):
            emi.train_head(caches, *labels, tmp_path / "run", head="gru", fusion=fusion, clock="face")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"fusion": "transformer", "clock": "face"}, OPTIONS["crossattention"]])
def test_what_each_stream_is_worth_is_measured_with_a_fusion_that_names_one(data, tmp_path, options):
    caches, labels = {name: data / f"{name}.zarr" for name in NAMES}, (data / "train.csv", data / "valid.csv")
    given = SMALL | {"fusion": "crossattention", "head": "gru", "epochs": 1} | options
    emi.ablate(caches, *labels, tmp_path / "out", streams=True, seeds=1, **given)
    assert (tmp_path / "out" / "streams.csv").is_file()


def test_frames_cannot_be_dropped_where_streams_are_joined_by_their_times(data):
    sources, settings = inputs(data, frames=False, head="gru", fusion="transformer", frame_dropout=0.2)
    with pytest.raises(TrainSettingsError, match="frame_dropout moves rows away from their times"):
        Trainer(settings, sources.splits["train"], None, None)


def batch_of(lengths: dict[str, list[int]], valid: dict[str, torch.Tensor] | None = None) -> Batch:
    streams = {
        name: Rows(torch.ones(len(n), max(n), 2), torch.tensor(n), (valid or {}).get(name))
        for name, n in lengths.items()
    }
    return Batch(streams, torch.zeros(len(next(iter(lengths.values()))), 1))


def kept(batch: Batch, chance: float, seed: int = 0) -> torch.Tensor:
    """(streams, clips) bool."""
    changed = augment_batch(batch, AugmentSettings(), torch.Generator().manual_seed(seed), chance)
    return torch.stack([rows.lengths > 0 for rows in changed.streams.values()])


def test_each_stream_is_left_out_with_the_chance_that_was_given():
    """Both of two streams would go with chance p²; one of them then stays, and which is a toss-up."""
    clips, chance = 20_000, 0.3
    found = kept(batch_of({"a": [3] * clips, "b": [5] * clips}), chance)
    expected = chance - chance**2 / 2
    for share in (~found).double().mean(dim=1).tolist():
        assert share == pytest.approx(expected, abs=5 * (expected * (1 - expected) / clips) ** 0.5)
    assert found.any(dim=0).all()


@pytest.mark.parametrize("chance", [0.5, 0.99])
def test_of_each_clip_one_stream_that_it_has_stays(chance):
    nothing = {"b": torch.zeros(40, 5, dtype=torch.bool)}
    found = kept(batch_of({"a": [0, 3] * 20, "b": [5] * 40, "c": [2] * 40}, nothing), chance)
    assert (found[0, 1::2] | found[2, 1::2]).all()
    assert found[2, ::2].all(), "the only stream of a clip that has a valid row"
    assert not found[0, ::2].any()


def test_the_generator_alone_decides_which_streams_go_and_nothing_is_drawn_without():
    batch, generator = batch_of({"a": [3] * 50, "b": [5] * 50}), torch.Generator().manual_seed(1)
    assert torch.equal(kept(batch, 0.4, seed=3), kept(batch, 0.4, seed=3))
    assert not torch.equal(kept(batch, 0.4, seed=3), kept(batch, 0.4, seed=4))
    state = generator.get_state()
    augment_batch(batch, AugmentSettings(), generator, 0.0)
    assert torch.equal(generator.get_state(), state)
    assert (batch.streams["a"].lengths == 3).all()


def test_training_leaves_streams_out_and_prediction_does_not(data):
    weights, predicted = [], []
    for chance in (0.0, 0.5):
        sources, settings = inputs(data, frames=False, head="gru", modality_dropout=chance)
        trainer = Trainer(settings, sources.splits["train"], None, None)
        predicted.append(trainer.predict(sources.splits["valid"]))
        trainer.run_epoch(1)
        weights.append(trainer.predictor.state_dict())
    np.testing.assert_array_equal(*predicted)
    assert not weights[0]["head.missing.face"].any()
    assert weights[1]["head.missing.face"].any(), "a learned vector stood in for a stream that each clip has"


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_a_chance_that_is_none_is_refused(value):
    with pytest.raises(TrainSettingsError, match=r"modality_dropout must lie in \[0, 1\)"):
        resolve_settings(modality_dropout=value)
