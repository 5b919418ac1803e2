"""A fine-tuned run is a backbone again: for extraction, for prediction, for the transformers library."""

import shutil

import numpy as np
import pytest
import torch

import emi
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError


@pytest.fixture(scope="module")
def run(tune, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ft"
    tune(folder, backbone_lr=1e-3)
    return folder


def by_clip(records):
    return {record["Filename"]: [record["Joy"], record["Calm"]] for record in records}


def assert_predicts_as_it_validated(model, run, labelled):
    expected = read_labels(run / "predictions_valid.csv", check_range=False)
    found = by_clip(model.predict(labelled / "audio"))
    np.testing.assert_allclose([found[clip] for clip in expected.ids], expected.values, rtol=0, atol=1e-5)


def test_prediction_from_media_repeats_the_validation(run, labelled):
    assert_predicts_as_it_validated(emi.load(run), run, labelled)


def test_a_moved_and_renamed_run_predicts_the_same(run, labelled, tmp_path):
    shutil.copytree(run, tmp_path / "elsewhere")
    assert_predicts_as_it_validated(emi.load(tmp_path / "elsewhere"), run, labelled)


def test_its_features_are_extracted_under_a_fingerprint_of_their_own(run, checkpoint, labelled, tmp_path):
    for name, backbone in (("tuned", run), ("plain", checkpoint)):
        emi.extract(labelled / "audio", tmp_path / f"{name}.zarr", backbone=str(backbone), dtype="float32")
    tuned, plain = (emi.open_cache(tmp_path / f"{name}.zarr") for name in ("tuned", "plain"))
    assert tuned.fingerprint["weights_sha256"] != plain.fingerprint["weights_sha256"]
    assert tuned.fingerprint["config_sha256"] == plain.fingerprint["config_sha256"]
    assert tuned.vad_names == plain.vad_names
    assert not np.allclose(tuned["00003"].frames, plain["00003"].frames, atol=1e-3)
    head = tmp_path / "head"
    emi.train_head(tmp_path / "tuned.zarr", labelled / "train.csv", labelled / "valid.csv", head, epochs=1, hidden=8)


def test_transformers_opens_it_and_computes_the_same(run, labelled, tiny, tmp_path):
    import transformers

    model, report = transformers.Wav2Vec2Model.from_pretrained(run, output_loading_info=True)
    assert not report["missing_keys"]
    assert {key.split(".")[0] for key in report["unexpected_keys"]} == {"classifier"}
    emi.extract(labelled / "audio", tmp_path / "f.zarr", backbone=str(run), dtype="float32", precision="fp32")
    from extract.audio.media import decode

    expected = tiny.alone(model.eval(), decode(labelled / "audio" / "00003.wav").samples)
    found = torch.from_numpy(np.asarray(emi.open_cache(tmp_path / "f.zarr")["00003"].frames))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_adapters_are_merged_into_a_plain_backbone(tune, labelled, tmp_path):
    pytest.importorskip("peft")
    tune(tmp_path / "ft", freeze="backbone", lora=4, backbone_lr=1e-2)
    tune(tmp_path / "still", freeze="backbone")
    from safetensors.torch import load_file

    merged, still = (load_file(tmp_path / name / "model.safetensors") for name in ("ft", "still"))
    assert merged.keys() == still.keys()
    changed = {name for name in merged if not torch.equal(merged[name], still[name])}
    assert changed == {name for name in merged if name.endswith(("q_proj.weight", "v_proj.weight"))}
    assert_predicts_as_it_validated(emi.load(tmp_path / "ft"), tmp_path / "ft", labelled)


def test_an_epoch_with_adapters_is_scored_as_the_finished_run_is(tune, tmp_path):
    pytest.importorskip("peft")
    result = tune(tmp_path / "ft", freeze="backbone", lora=2, backbone_lr=1e-2, precision="bf16", epochs=1)
    kept = next(record for record in result.history if record["epoch"] == result.best_epoch)
    assert kept["valid_mean_pearson"] == result.report.mean_pearson


def test_scoring_with_adapters_merged_leaves_every_weight_as_it_was(checkpoint):
    pytest.importorskip("peft")
    from emi.finetuning.depth import adapters_merged, add_adapters
    from extract.backbones import Regularisation, identify, load_trainable

    backbone = load_trainable(identify(str(checkpoint)), torch.device("cpu"), "fp32", Regularisation())
    add_adapters(backbone, 2)
    for name, parameter in backbone.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    with adapters_merged(backbone):
        merged = backbone.state_dict()
        assert any(not torch.equal(merged[name], weight) for name, weight in before.items())
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.state_dict().items())


def test_a_tuned_silero_is_a_backbone_too(tune, labelled, tmp_path):
    tune(tmp_path / "ft", "silero", freeze="none", backbone_lr=1e-3)
    assert_predicts_as_it_validated(emi.load(tmp_path / "ft"), tmp_path / "ft", labelled)
    again = tmp_path / "again"
    tune(again, tmp_path / "ft", epochs=1, freeze="backbone")  # and can be tuned again


def test_several_seeds_predict_together(tune, labelled, tmp_path):
    tune(tmp_path / "ft", seeds=2, backbone_lr=1e-3)
    members = [by_clip(emi.load(tmp_path / "ft" / f"seed-{i}").predict(labelled / "audio")) for i in range(2)]
    together = by_clip(emi.load(tmp_path / "ft").predict(labelled / "audio"))
    for clip, values in together.items():
        np.testing.assert_allclose(values, np.mean([member[clip] for member in members], axis=0), atol=1e-6)
    assert_predicts_as_it_validated(emi.load(tmp_path / "ft"), tmp_path / "ft", labelled)


def test_a_run_that_is_not_finished_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "half")
    (tmp_path / "half" / "best.safetensors").unlink()
    with pytest.raises(RunFolderError, match="is not finished; run the same `emi finetune`"):
        emi.load(tmp_path / "half")


def test_a_finished_run_finds_nothing_to_do_and_keeps_its_files(run, tune):
    before = {p.name: p.read_bytes() for p in run.iterdir() if p.suffix in (".safetensors", ".csv", ".jsonl", ".toml")}
    result = tune(run, backbone_lr=1e-3)
    assert result.resumed_at == len(result.history) == 2
    assert before == {name: (run / name).read_bytes() for name in before}


def test_folds_predict_every_clip_once_and_share_no_group(tune, tmp_path):
    result = tune(tmp_path / "ft", epochs=1, folds=2, group_by=r"\d$")
    assert result.kind == "folds"
    predicted = read_labels(tmp_path / "ft" / "predictions_folds.csv", check_range=False)
    assert len(predicted) == 40
    assert tune(tmp_path / "ft", epochs=1, folds=2, group_by=r"\d$").nothing_to_do


def test_training_on_all_keeps_a_backbone_of_its_own(tune, labelled, tmp_path):
    tune(tmp_path / "ft", epochs=1, train_on_all=True, backbone_lr=1e-3, test=labelled / "valid.csv")
    expected = read_labels(tmp_path / "ft" / "all" / "predictions_test.csv", check_range=False)
    found = by_clip(emi.load(tmp_path / "ft" / "all").predict(labelled / "audio"))
    np.testing.assert_allclose([found[clip] for clip in expected.ids], expected.values, rtol=0, atol=1e-5)


def test_a_run_on_another_track_hears_that_track_when_it_predicts(tune, tmp_path):
    tune(tmp_path / "ft", "silero", epochs=1, track=1, freeze="backbone")
    assert "track = 1" in (tmp_path / "ft" / "features.toml").read_text()
    assert emi.load(tmp_path / "ft").trained.only.header.fingerprint["track"] == 1
