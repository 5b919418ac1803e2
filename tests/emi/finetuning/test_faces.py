"""A face backbone learns from folders of crops: as in the cached mode where it is frozen, augmented, exported."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

import emi
from cache.errors import EmiError
from emi.cleaning import find_removable
from emi.finetuning.crop_augment import CropChange, change_crops
from emi.finetuning.modalities import Faces
from emi.finetuning.settings import FinetuneSettings
from tests.emi.finetuning.drawn_faces import EXACT, STILL, TINY, save_iresnet, write_clips, write_labels
from tests.extract.image_checkpoints import save as save_image_encoder
from train_head.data.labels import read_labels
from train_head.errors import LabelError, TrainSettingsError
from train_head.evaluation.metrics import evaluate


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """Crops of 14 people, who are all others in the validation split, and an IResNet with LA-SE."""
    root = tmp_path_factory.mktemp("faces")
    for name, count, seed in (("train", 9, 0), ("valid", 5, 100)):
        write_labels(root / f"{name}.csv", write_clips(root / "face_images", count, seed))
    save_iresnet(root / "iresnet")
    save_image_encoder(root / "vit", "vit")
    return root


@pytest.fixture
def tune(faces):
    def tune(out, backbone="iresnet", **settings):
        files = (faces / "face_images", faces / "train.csv", faces / "valid.csv")
        given = {"crops": faces / "crops", **EXACT, **settings}
        return emi.finetune(*files, out, backbone=str(faces / backbone), **given)

    return tune


def values(folder):
    return read_labels(folder / "predictions_valid.csv", check_range=False).values


@contextlib.contextmanager
def first_gradients(group=0):
    """Collect gradients at the first step, in the order of a group's parameters."""
    found = []

    def collect(optimizer, *_):
        if not found:
            found.extend(p.grad.clone() for p in optimizer.param_groups[group]["params"])

    handle = register_optimizer_step_pre_hook(collect)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.parametrize("backbone", ["iresnet", "vit"])
def test_with_a_frozen_backbone_it_takes_the_steps_of_the_cached_mode(faces, tune, tmp_path, backbone):
    how = {**EXACT, "head": "lstm", "hidden": 8, "dropout": 0.0, "standardise": True}
    place = tmp_path / "f.zarr"
    emi.extract(faces / "face_images", place, backbone=str(faces / backbone), dtype="float32", precision="fp32")
    with first_gradients() as theirs:
        emi.train_head(place, faces / "train.csv", faces / "valid.csv", tmp_path / "head", **how)
    with first_gradients() as ours:
        tune(tmp_path / "ft", backbone, freeze="backbone", batch_crops=7, **STILL, **how)
    names = [load_file(tmp_path / run / "best.safetensors").keys() for run in ("ft", "head")]
    assert names[0] == names[1]
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=2e-5 * largest)
    np.testing.assert_allclose(values(tmp_path / "ft"), values(tmp_path / "head"), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def trained(faces, tmp_path_factory):
    """A run in which LA-SE learned alone, and its crops."""
    out = tmp_path_factory.mktemp("trained") / "ft"
    files = (faces / "face_images", faces / "train.csv", faces / "valid.csv")
    how = {"freeze": "all-but-attention", "backbone_lr": 1e-2}
    emi.finetune(*files, out, backbone=str(faces / "iresnet"), **EXACT, **how)
    return out


def test_attention_learns_alone(faces, trained):
    before, after = (load_file(place / "model.safetensors") for place in (faces / "iresnet", trained))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("attention.")}


def test_all_learn_but_the_statistics_of_batch_normalisation(faces, tune, tmp_path):
    tune(tmp_path / "ft", freeze="none", backbone_lr=1e-3, backbone_dropout=0.0)
    before, after = (load_file(place / "model.safetensors") for place in (faces / "iresnet", tmp_path / "ft"))
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == {n for n in before if "running_" in n or n.startswith("features.")}


def test_the_last_stage_learns_with_what_follows_it(faces, tune, tmp_path):
    tune(tmp_path / "ft", freeze="layers:3", backbone_lr=1e-3, unfreeze_every=0)
    before, after = (load_file(place / "model.safetensors") for place in (faces / "iresnet", tmp_path / "ft"))
    moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layer4", "bn2", "fc", "attention"}


def test_stages_thaw_from_attention_down(tune, tmp_path):
    tune(tmp_path / "ft", unfreeze_every=1, epochs=4)
    records = [json.loads(line) for line in (tmp_path / "ft" / "metrics.jsonl").read_text().splitlines()]
    assert [record["frozen_stages"] for record in records] == [7, 6, 5, 4]


def test_the_run_is_a_backbone_with_a_fingerprint_of_its_own_and_predicts(faces, trained, tmp_path):
    identity = emi.extract(faces / "face_images", tmp_path / "f.zarr", backbone=str(trained), precision="fp32")
    made = emi.open_cache(tmp_path / "f.zarr").fingerprint
    first = emi.extract(faces / "face_images", tmp_path / "0.zarr", backbone=str(faces / "iresnet"), precision="fp32")
    assert made["weights_sha256"] != emi.open_cache(tmp_path / "0.zarr").fingerprint["weights_sha256"]
    assert (identity.written, first.written) == (14, 14)
    records = emi.load(trained).predict(faces / "face_images")
    found = {record["Filename"]: [record["Smile"], record["Jaw"]] for record in records}
    labels = read_labels(trained / "predictions_valid.csv", check_range=False)
    expected = dict(zip(labels.ids, labels.values, strict=True))
    assert len(found) == 14
    for clip, row in expected.items():
        np.testing.assert_allclose(found[clip], row, atol=1e-5)


def test_a_run_with_times_of_videos_or_another_rate_records_them(trained):
    features = (trained / "features.toml").read_text()
    assert 'modality = "face"' in features
    assert "fps = 6.0" in features
    config = (trained / "config.toml").read_text()
    assert "crops_sha256" in config
    assert "flip = 0.5" in config
    assert "noise_snr" not in config


def test_a_finished_run_finds_nothing_to_do_and_its_crops_are_removed_by_clean(faces, trained):
    files = (faces / "face_images", faces / "train.csv", faces / "valid.csv")
    before = {path.name: path.stat().st_mtime_ns for path in trained.glob("*.safetensors")}
    how = {"freeze": "all-but-attention", "backbone_lr": 1e-2}
    emi.finetune(*files, trained, backbone=str(faces / "iresnet"), **EXACT, **how)
    assert {path.name: path.stat().st_mtime_ns for path in trained.glob("*.safetensors")} == before
    (crops,) = find_removable([trained.with_name("ft-crops")])
    assert {path.suffix for path in crops.files} >= {".bin", ".rows", ".json"}
    crops.remove()
    assert not trained.with_name("ft-crops").exists()


def test_beside_a_cached_stream(faces, tune, tmp_path):
    emi.extract(faces / "face_images", tmp_path / "v.zarr", backbone=str(faces / "vit"))
    tune(tmp_path / "ft", cache={"other": tmp_path / "v.zarr"}, epochs=1)
    assert set(emi.load(tmp_path / "ft").trained.streams) == {"face", "other"}


def test_adapters_in_an_image_encoder(tune, tmp_path):
    pytest.importorskip("peft")
    tune(tmp_path / "ft", "vit", lora=2, freeze="backbone", backbone_lr=1e-2)
    assert not any("lora" in name for name in load_file(tmp_path / "ft" / "model.safetensors"))


def crops(count=3, seed=0):
    return [*np.random.default_rng(seed).integers(0, 255, (count, 20, 24, 3)).astype(np.uint8)]


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def test_all_crops_of_a_clip_are_mirrored_or_none():
    settings = FinetuneSettings(**STILL | {"flip": 0.5})
    mirrored = []
    for seed in range(40):
        given = crops(seed=seed)
        found = change_crops(given, settings, drawn(seed))
        same = [np.array_equal(a, b) for a, b in zip(found, given, strict=True)]
        flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(found, given, strict=True)]
        assert all(same) or all(flipped)
        mirrored.append(all(flipped))
    assert 8 < sum(mirrored) < 32


def test_each_change_is_within_its_bounds_and_repeats_with_the_seed():
    settings = FinetuneSettings(random_crop=0.2, brightness=0.3, contrast=0.1, saturation=0.4)
    changes = [CropChange.draw(settings, drawn(seed)) for seed in range(200)]
    assert changes == [CropChange.draw(settings, drawn(seed)) for seed in range(200)]
    for left, top, right, bottom in (change.box for change in changes):
        assert 0 <= left < right <= 1 + 1e-9
        assert 0 <= top < bottom <= 1 + 1e-9
        assert right - left == pytest.approx(bottom - top)
        assert 0.8 <= right - left <= 1
    for name, share in (("brightness", 0.3), ("contrast", 0.1), ("saturation", 0.4)):
        factors = [getattr(change, name) for change in changes]
        assert 1 - share <= min(factors) < 1 - 0.8 * share < 1 + 0.8 * share < max(factors) <= 1 + share
    given = crops(1)[0]
    assert np.array_equal(CropChange.draw(FinetuneSettings(**STILL), drawn()).apply(given), given)
    assert changes[0].apply(given).shape == given.shape


def test_only_training_batches_are_changed(tune, tmp_path, monkeypatch):
    seen = []
    original = Faces.open

    def watched(self, *how):
        clips = original(self, *how)
        inputs = clips.inputs
        clips.inputs = lambda stream, samples, noise: seen.append(noise is not None) or inputs(stream, samples, noise)
        return clips

    monkeypatch.setattr(Faces, "open", watched)
    found = {}
    for name, settings in (("off", STILL), ("flip", STILL | {"flip": 1.0})):
        how = {"freeze": "backbone", "lr": 1e-12, "weight_decay": 0.0, "epochs": 1}
        tune(tmp_path / name, **how, **settings)
        records = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = records[0]["train_loss"], values(tmp_path / name)
    assert True in seen
    assert False in seen
    assert found["off"][0] != found["flip"][0]
    np.testing.assert_array_equal(found["off"][1], found["flip"][1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"noise_snr": 10.0}, "noise_snr: for backbones of sound, and this one takes faces; leave it out"),
        ({"track": 2, "speed": 0.1}, "speed and track: for backbones of sound"),
        ({"fsdp": True}, "fsdp: for backbones of sound"),
        ({"flip": 2.0}, "flip must lie from 0 to 1"),
        ({"lora": 2, "freeze": "backbone"}, "an IResNet has no linear layers for adapters"),
        ({"freeze": "layers:5"}, "the backbone has 4 layers"),
        ({"audio": "somewhere"}, "--audio names the folder of other media"),
        ({"ids": ["aff-wild2"]}, "--ids aff-wild2: .* of a cached stream, and there is none; give --cache NAME=PATH"),
        ({"fps": None}, "00000, is a folder of images, which have no times of their own"),
        ({"fps": -1.0}, "--fps: rows per second above zero"),
        ({"crop": "round"}, "--crop takes aligned or square"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(tune, tmp_path, settings, said):
    with pytest.raises(EmiError, match=said):
        tune(tmp_path / "ft", **settings)
    assert not (tmp_path / "ft").exists()


def test_attention_alone_needs_attention(faces, tune, tmp_path):
    with pytest.raises(TrainSettingsError, match="the LA-SE of an IResNet, and the backbone has none"):
        tune(tmp_path / "ft", "vit", freeze="all-but-attention")


def test_faces_are_refused_by_a_backbone_of_sound(faces, tmp_path):
    files = (faces / "face_images", faces / "train.csv", faces / "valid.csv")
    with pytest.raises(TrainSettingsError, match="flip: for backbones of faces, and this one takes sound"):
        emi.finetune(*files, tmp_path / "ft", backbone="silero", **EXACT, flip=0.1)
    with pytest.raises(TrainSettingsError, match="max_seconds none is for backbones of faces"):
        emi.finetune(*files, tmp_path / "ft", backbone="silero", **EXACT, max_seconds="none")


def test_folders_without_crops_are_named(faces, tmp_path):
    labels = write_labels(tmp_path / "l.csv", {"a": np.array([0.5, 0.2]), "b": np.array([0.1, 0.2])})
    media = tmp_path / "crops"
    (media / "a").mkdir(parents=True)
    Image.fromarray(crops(1)[0]).save(media / "a" / "0.png")
    (media / "b").mkdir()
    (media / "b" / "0.png").write_bytes(b"no image")
    how = {"backbone": str(faces / "iresnet"), **EXACT, "batch_size": 2}
    with pytest.raises(LabelError, match=r"1 of 2 clips cannot be read; the first, .*b, has no image that can be read"):
        emi.finetune(media, labels, labels, tmp_path / "ft", **how)
    emi.finetune(media, labels, labels, tmp_path / "skipping", skip_missing=True, **how)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmiError, match=r"holds no media .looked for folders of images"):
        emi.finetune(tmp_path / "empty", labels, labels, tmp_path / "x", **how)


@pytest.mark.slow
def test_fine_tuned_on_faces_it_beats_the_same_head_on_frozen_features(tmp_path):
    """Of clips that are not in the training split, from random weights and the head of the frozen features."""
    for name, count, seed in (("train", 160, 0), ("valid", 60, 1000)):
        write_labels(tmp_path / f"{name}.csv", write_clips(tmp_path / "clips", count, seed, rows=1, people=4))
    save_iresnet(tmp_path / "iresnet", replace(TINY, widths=(8, 12, 16, 24), dim=32, reduction=4))
    files, backbone = (tmp_path / "clips", tmp_path / "train.csv", tmp_path / "valid.csv"), str(tmp_path / "iresnet")
    how = {**EXACT, "batch_size": 8, "standardise": True}
    emi.extract(files[0], tmp_path / "f.zarr", backbone=backbone, dtype="float32", precision="fp32")
    emi.train_head(tmp_path / "f.zarr", *files[1:], tmp_path / "frozen", **how | {"epochs": 40})
    tuned = {"freeze": "none", "backbone_lr": 3e-4, "backbone_dropout": 0.0, "lr": 1e-3, "epochs": 6}
    emi.finetune(*files, tmp_path / "tuned", backbone=backbone, init_head=tmp_path / "frozen", **how | tuned)
    truth = read_labels(files[2])
    frozen, found = (
        evaluate(values(tmp_path / run), truth.values, truth.names).mean("pearson") for run in ("frozen", "tuned")
    )
    assert found > frozen + 0.02, (frozen, found)
