"""Loading checkpoints: every weight used, every weight there, whatever their form; and every way they can be wrong."""

import json

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from extract.backbones import identify
from extract.errors import BackboneError

QUERY = "encoder.layers.1.attention.q_proj.weight"


@pytest.fixture
def folder(tmp_path, tiny):
    """A complete checkpoint."""
    tiny.model("wav2vec2").save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def features(backbone, waveform):
    with torch.inference_mode():
        return backbone([torch.from_numpy(waveform)]).frames


def refused(load, folder) -> str:
    with pytest.raises(BackboneError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_in_several_files_is_the_same_model(tmp_path, media, tiny, load):
    model = tiny.model("hubert", **tiny.layer_norm)
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    tiny.save_preprocessor(tmp_path)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    waveform = media.speech(0.5)
    torch.testing.assert_close(features(load(tmp_path)[0], waveform), tiny.alone(model, waveform), rtol=0, atol=2e-4)


def test_a_regression_head_in_several_files_is_found(tmp_path, media, tiny, load):
    model, head = tiny.save_audeering(tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    (tmp_path / "pytorch_model.bin").unlink()
    save_torch_state_dict(state, tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    waveform = media.speech(0.5)
    with torch.inference_mode():
        pooled = load(tmp_path)[0]([torch.from_numpy(waveform)]).vad_pooled[0]
        torch.testing.assert_close(pooled, head(tiny.alone(model, waveform).mean(0)), rtol=0, atol=2e-4)


def test_a_bin_file_in_torchs_oldest_format_is_read(tmp_path, tiny, load):
    tiny.save_audeering(tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert load(tmp_path)[1].vad_names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path, media, tiny, load, dtype):
    model = tiny.model("wav2vec2", **tiny.layer_norm).to(dtype)
    model.save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    backbone, _ = load(tmp_path)
    waveform = media.speech(0.5)
    ours = features(backbone, waveform)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, tiny.alone(model.float(), waveform), rtol=0, atol=2e-4)


@pytest.mark.parametrize("task", ["ForCTC", "ForPreTraining", "ForSequenceClassification"])
def test_the_head_of_another_task_is_ignored(tmp_path, media, tiny, load, task):
    import transformers

    sizes = {"codevector_dim": 16, "proj_codevector_dim": 16, "num_codevectors_per_group": 8, "classifier_proj_size": 8}
    encoder = tiny.model("wav2vec2", **sizes)
    model = getattr(transformers, f"Wav2Vec2{task}")(encoder.config).eval()
    model.wav2vec2.load_state_dict(encoder.state_dict())
    model.save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    waveform = media.speech(0.5)
    backbone, identity = load(tmp_path)
    torch.testing.assert_close(features(backbone, waveform), tiny.alone(encoder, waveform), rtol=0, atol=2e-4)
    assert identity.vad_names == ()


def test_the_mask_of_training_may_be_missing(folder, load):
    """facebook/wav2vec2-base-960h has none; it takes part in SpecAugment only."""
    edit_weights(folder, lambda state: state.pop("masked_spec_embed"))
    load(folder)


@pytest.mark.parametrize("weight", [QUERY, "encoder.layer_norm.bias", "feature_extractor.conv_layers.0.conv.weight"])
def test_a_missing_weight_is_named(folder, load, weight):
    edit_weights(folder, lambda state: state.pop(weight))
    message = refused(load, folder)
    assert weight in message
    assert "missing" in message


def test_an_unexpected_weight_is_named(folder, load):
    edit_weights(folder, lambda state: state.update({"encoder.layers.9.attention.q_proj.weight": torch.zeros(32, 32)}))
    message = refused(load, folder)
    assert "encoder.layers.9.attention.q_proj.weight" in message
    assert "unexpected" in message


def test_a_misshapen_weight_is_named(folder, load):
    edit_weights(folder, lambda state: state.update({QUERY: torch.zeros(32, 16)}))
    message = refused(load, folder)
    assert QUERY in message
    assert "misshapen" in message


@pytest.mark.parametrize("part", ["dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"])
@pytest.mark.parametrize("how", ["missing", "misshapen"])
def test_a_regression_head_that_does_not_fit_is_named(tmp_path, tiny, load, part, how):
    tiny.save_audeering(tmp_path)
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    weight = state.pop(f"classifier.{part}")
    if how == "misshapen":
        state[f"classifier.{part}"] = weight[:1]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert f"classifier.{part}" in refused(load, tmp_path)


@pytest.mark.parametrize("labels", [{}, {"0": "angry", "1": "happy", "2": "sad"}, {"0": "arousal", "1": "valence"}])
def test_a_checkpoint_whose_labels_are_not_vad_has_no_vad(tmp_path, tiny, labels):
    tiny.save_audeering(tmp_path)
    edit_config(tmp_path, id2label=labels)
    assert identify(str(tmp_path)).vad_names == ()


@pytest.mark.parametrize("kind", ["clap", "bert", None])
def test_a_model_of_another_kind_is_refused_with_those_that_work(folder, load, kind):
    edit_config(folder, model_type=kind)
    message = refused(load, folder)
    assert repr(kind) in message
    assert "wav2vec2, hubert, wavlm" in message
    assert "--backbone silero" in message


def test_a_model_for_another_sample_rate_is_refused(folder, tiny, load):
    tiny.save_preprocessor(folder, sampling_rate=8000)
    assert "8000 Hz" in refused(load, folder)


def test_an_adapter_that_shortens_the_output_is_refused(tmp_path, tiny, load):
    tiny.model("wav2vec2", add_adapter=True, num_adapter_layers=2).save_pretrained(tmp_path)
    assert "adapter" in refused(load, tmp_path)


def test_a_folder_without_config_is_no_checkpoint(tmp_path, load):
    assert "has no config.json" in refused(load, tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_a_broken_config_is_named(folder, load, content):
    (folder / "config.json").write_text(content)
    assert str(folder / "config.json") in refused(load, folder)


def test_a_folder_without_weights_is_named(folder, load):
    (folder / "model.safetensors").unlink()
    assert "holds none of model.safetensors" in refused(load, folder)


def test_a_missing_part_of_the_weights_is_named(tmp_path, tiny, load):
    tiny.model("wav2vec2").save_pretrained(tmp_path, max_shard_size="30KB")
    part = sorted(tmp_path.glob("model-*.safetensors"))[1]
    part.unlink()
    assert part.name in refused(load, tmp_path)


@pytest.mark.parametrize("with_head", [False, True])
def test_a_truncated_weight_file_is_named(tmp_path, tiny, load, with_head):
    if with_head:
        tiny.save_audeering(tmp_path)
    else:
        tiny.model("wav2vec2").save_pretrained(tmp_path)
    path = next(path for path in tmp_path.iterdir() if path.suffix in (".bin", ".safetensors"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert path.name in refused(load, tmp_path)


def test_the_fingerprint_follows_weights_and_settings_not_the_folder(folder, tmp_path_factory, tiny):
    def fingerprint(place=folder):
        return dict(identify(str(place)).fingerprint)

    first = fingerprint()
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    edit_config(copy, transformers_version="4.9", dtype="float16", _name_or_path="elsewhere")
    assert fingerprint(copy) | {"backbone": ""} == first | {"backbone": ""}
    edit_weights(folder, lambda state: state[QUERY].add_(1e-3))
    assert fingerprint()["weights_sha256"] != first["weights_sha256"]
    edit_config(folder, layer_norm_eps=1e-3)
    assert fingerprint()["config_sha256"] != first["config_sha256"]
    tiny.save_preprocessor(folder, do_normalize=False)
    assert fingerprint()["normalisation"] == "none" != first["normalisation"]
