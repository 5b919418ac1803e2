"""What counts of a checkpoint is its encoder: heads that are understood are used, others left out and said."""

import json

import pytest
import torch
from safetensors.torch import save_file

from extract.backbones import Regularisation, identify, load_trainable
from extract.errors import BackboneError

VAD = ("arousal", "dominance", "valence")


@pytest.fixture
def checkpoint(tmp_path, tiny):
    """Write a small checkpoint in any layout; gives its encoder and head."""

    def write(
        kind="wav2vec2",
        *,
        prefix="wav2vec2.",
        head="classifier.",
        output="out_proj",
        labels=VAD,
        old_names=False,
        extra=(),
        less=(),
        torch_file=False,
        **config,
    ):
        encoder = tiny.model(kind)
        torch.manual_seed(1)
        layers = torch.nn.ModuleDict({"dense": torch.nn.Linear(32, 32), output: torch.nn.Linear(32, len(labels) or 1)})
        layers.requires_grad_(False)
        state = {prefix + name: tensor for name, tensor in encoder.state_dict().items()}
        if old_names:
            names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
            state = {
                n.replace(a, names[a]) if (a := next((a for a in names if a in n), "")) else n: t
                for n, t in state.items()
            }
        if head is not None:
            state |= {head + name: tensor for name, tensor in layers.state_dict().items()}
        state |= {name: torch.zeros(*shape) for name, shape in dict(extra).items()}
        state = {name: tensor.contiguous() for name, tensor in state.items() if not name.endswith(tuple(less) or "\0")}
        if torch_file:
            torch.save(state, tmp_path / "pytorch_model.bin")
        else:
            save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
        content = encoder.config.to_dict() | {"id2label": {str(i): label for i, label in enumerate(labels)}}
        (tmp_path / "config.json").write_text(json.dumps(content | {"architectures": None} | config))
        tiny.save_preprocessor(tmp_path)
        return encoder, lambda x: layers[output](torch.tanh(layers["dense"](x)))

    return write


def run(backbone, waveform):
    with torch.inference_mode():
        return backbone([torch.from_numpy(waveform)])


@pytest.mark.parametrize("torch_file", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        {"output": "output"},
        {"output": "out_proj", "labels": ("Valence", "AROUSAL", "dominance")},
        {"output": "output", "head": "model.regressor.", "prefix": "model.wav2vec2.", "old_names": True},
        {"prefix": "", "head": "head.", "extra": {"quantizer.codevectors": (1, 4, 8), "project_q.weight": (8, 8)}},
        {"prefix": "encoder.", "less": ["masked_spec_embed"]},
        {"kind": "hubert", "prefix": "hubert.", "output": "output"},
        {"kind": "wavlm", "prefix": "module.wavlm.", "old_names": True},
    ],
    ids=lambda layout: "-".join(map(str, layout)),
)
def test_a_supported_head_gives_arousal_dominance_valence(tmp_path, checkpoint, media, tiny, load, layout, torch_file):
    encoder, head = checkpoint(**layout, torch_file=torch_file)
    backbone, identity = load(tmp_path)
    assert identity.vad_names == VAD
    labels = [label.lower() for label in layout.get("labels", VAD)]
    waveform = media.speech(0.4)
    expected = tiny.alone(encoder, waveform)
    found = run(backbone, waveform)
    torch.testing.assert_close(found.frames, expected, rtol=0, atol=2e-4)
    rows = [labels.index(name) for name in VAD]
    torch.testing.assert_close(found.vad, head(expected)[:, rows], rtol=0, atol=2e-4)
    torch.testing.assert_close(found.vad_pooled[0], head(expected.mean(0))[rows], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("layout", "left_out"),
    [
        ({"labels": ("angry", "happy", "sad")}, "classifier"),
        (
            {"head": None, "extra": {"classifier.out_proj.weight": (3, 32), "classifier.out_proj.bias": (3,)}},
            "classifier",
        ),
        ({"head": None, "labels": (), "extra": {"lm_head.weight": (9, 32), "lm_head.bias": (9,)}}, "lm_head"),
        ({"head": None, "extra": {"projector.weight": (8, 32), "classifier.weight": (3, 8)}}, "classifier, projector"),
        ({"extra": {"projector.weight": (32, 32), "projector.bias": (32,)}}, "classifier, projector"),
        ({"extra": {"layer_weights": (4,)}}, "classifier, layer_weights"),
        ({"extra": {"classifier.norm.weight": (32,)}}, "classifier"),
        ({"pooling_mode": "max"}, "classifier"),
        ({"prefix": "", "head": None, "extra": {"quantizer.codevectors.weight": (1,)}}, "quantizer"),
    ],
    ids=lambda value: value.replace(", ", "-") if isinstance(value, str) else "-".join(map(str, value)),
)
def test_an_unsupported_head_is_ignored_and_named(tmp_path, checkpoint, media, tiny, load, layout, left_out):
    encoder, _ = checkpoint(**layout)
    backbone, identity = load(tmp_path)
    assert identity.vad_names == ()
    assert f"left out: {left_out} (" in identity.note
    assert "\n" not in identity.note
    waveform = media.speech(0.4)
    torch.testing.assert_close(run(backbone, waveform).frames, tiny.alone(encoder, waveform), rtol=0, atol=2e-4)


def test_a_checkpoint_without_a_head_gives_no_note(tmp_path, checkpoint):
    checkpoint(prefix="", head=None)
    assert identify(str(tmp_path)).note == ""


@pytest.mark.parametrize("prefix", ["", "wav2vec2.", "model."])
@pytest.mark.parametrize("weight", ["feature_projection.projection.weight", "encoder.layers.2.final_layer_norm.bias"])
def test_a_weight_of_the_encoder_that_is_missing_is_named_as_in_the_file(tmp_path, checkpoint, load, prefix, weight):
    checkpoint(prefix=prefix, less=[weight])
    with pytest.raises(BackboneError, match=f"1 missing weight.*{prefix}{weight}"):
        load(tmp_path)


def test_a_weight_of_another_shape_is_named_with_both(tmp_path, checkpoint, load):
    checkpoint(extra={"wav2vec2.encoder.layer_norm.weight": (5,)})
    with pytest.raises(
        BackboneError, match=r"misshapen weight.*wav2vec2\.encoder\.layer_norm\.weight \(5,\) for \(32,\)"
    ):
        load(tmp_path)


def test_a_positional_convolution_without_its_norm_is_the_same(tmp_path, tiny, media, load):
    encoder = tiny.model("wav2vec2")
    name = "encoder.pos_conv_embed.conv."
    state = {n: t for n, t in encoder.state_dict().items() if not n.startswith(f"{name}param")}
    state[f"{name}weight"] = encoder.encoder.pos_conv_embed.conv.weight.detach().contiguous()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text(encoder.config.to_json_string(use_diff=False))
    tiny.save_preprocessor(tmp_path)
    waveform = media.speech(0.4)
    torch.testing.assert_close(
        run(load(tmp_path)[0], waveform).frames, tiny.alone(encoder, waveform), rtol=0, atol=2e-4
    )


def test_what_is_trained_starts_from_the_same_numbers_and_is_saved_in_our_order(
    tmp_path, tmp_path_factory, checkpoint, media, load
):
    checkpoint(output="output", labels=("valence", "dominance", "arousal"))
    waveform = media.speech(0.4)
    expected = run(load(tmp_path)[0], waveform)
    identity = identify(str(tmp_path))
    trainable = load_trainable(identity, torch.device("cpu"), "fp32", Regularisation())
    found = run(trainable, waveform)
    saved = tmp_path_factory.mktemp("saved")
    trainable.save(saved)
    assert identify(str(saved)).vad_names == VAD
    for features in (found, run(load(saved)[0], waveform)):
        torch.testing.assert_close(features.frames, expected.frames, rtol=0, atol=2e-4)
        torch.testing.assert_close(features.vad, expected.vad, rtol=0, atol=2e-4)


def test_a_model_that_cannot_be_built_is_not_reported_as_damaged(tmp_path, checkpoint, load):
    checkpoint(num_attention_heads=5)
    with pytest.raises(BackboneError, match=r"cannot build the model of its config\.json") as caught:
        load(tmp_path)
    assert "download" not in str(caught.value)


class TestNestedProcessor:
    """processor_config.json as transformers 5 saves it: settings of the feature extractor within."""

    @pytest.fixture
    def folder(self, tmp_path, tiny):
        tiny.model("wav2vec2").save_pretrained(tmp_path)
        return tmp_path

    def write(self, folder, part="feature_extractor", **settings):
        content = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16_000} | settings
        content = {"processor_class": "Wav2Vec2Processor"} | ({part: content} if part else {})
        (folder / "processor_config.json").write_text(json.dumps(content))

    @pytest.mark.parametrize("part", ["feature_extractor", "audio_processor"])
    @pytest.mark.parametrize("normalise", [False, True])
    def test_features_are_those_of_transformers(self, folder, media, tiny, load, part, normalise):
        from transformers import Wav2Vec2FeatureExtractor

        self.write(folder, part, do_normalize=normalise)
        assert Wav2Vec2FeatureExtractor.from_pretrained(folder).do_normalize == normalise
        backbone, identity = load(folder)
        assert identity.fingerprint["normalisation"] == ("clip-mean-variance" if normalise else "none")
        waveform = media.speech(0.4)
        expected = tiny.alone(tiny.model("wav2vec2"), waveform, normalise)
        torch.testing.assert_close(run(backbone, waveform).frames, expected, rtol=0, atol=2e-4)
        trainable = load_trainable(identity, torch.device("cpu"), "fp32", Regularisation())
        torch.testing.assert_close(run(trainable, waveform).frames, expected, rtol=0, atol=2e-4)

    def test_what_is_nested_comes_before_the_file_beside_it(self, folder, tiny):
        tiny.save_preprocessor(folder, do_normalize=True)
        self.write(folder, part="", do_normalize=False)
        assert identify(str(folder)).fingerprint["normalisation"] == "clip-mean-variance"
        self.write(folder, do_normalize=False)
        assert identify(str(folder)).fingerprint["normalisation"] == "none"

    def test_a_model_for_another_sample_rate_is_refused(self, folder, load):
        self.write(folder, sampling_rate=8000)
        with pytest.raises(BackboneError, match="8000 Hz"):
            load(folder)

    def test_a_trained_copy_takes_the_file_along(self, folder, tmp_path_factory):
        self.write(folder, do_normalize=False)
        saved = tmp_path_factory.mktemp("saved")
        identity = identify(str(folder))
        load_trainable(identity, torch.device("cpu"), "fp32", Regularisation()).save(saved)
        assert identify(str(saved)).fingerprint["normalisation"] == "none"
