"""Face backbones with gradients compute what those of extraction compute, and are saved as backbones."""

import json

import numpy as np
import pytest
import torch

from extract.backbones import Regularisation, family_of, identify, load_trainable
from extract.backbones.face_rows import GROUP, in_groups
from extract.backbones.iresnet.config import IResNetConfig
from extract.errors import BackboneError
from tests.extract.backbones.test_image_encoders import clip, pictures
from tests.extract.backbones.test_iresnet import saved
from tests.extract.backbones.test_timm import CASES as TIMM_CASES
from tests.extract.backbones.test_timm import save as save_timm
from tests.extract.image_checkpoints import CASES, save

CPU = torch.device("cpu")
WITH_ATTENTION = IResNetConfig(units=(1, 2, 1, 1), widths=(4, 8, 12, 16), dim=24, reduction=2)
KINDS = ("vit", "clip", "swin", "resnet")
FIVE = ["layer 1", "layer 2", "layer 3", "layer 4"]


@pytest.fixture(params=["iresnet", "iresnet without attention", *KINDS, *TIMM_CASES])
def folder(request, tmp_path):
    if request.param.startswith("iresnet"):
        attention = {} if request.param == "iresnet" else {"attention": "none"}
        config = IResNetConfig(**{**WITH_ATTENTION.__dict__, **attention})
        return saved(tmp_path / "iresnet", config)
    save_one = save_timm if request.param in TIMM_CASES else save
    return save_one(tmp_path / request.param, request.param)


def clips():
    return [
        clip([*pictures(5)], [True, True, False, True, True]),
        clip([*pictures(2, 96, 130, seed=1)]),
        clip([*pictures(1)], [False]),
    ]


def trainable(folder, **regularisation):
    return load_trainable(identify(str(folder)), CPU, "fp32", Regularisation(**regularisation))


def test_in_evaluation_it_computes_the_features_of_extraction(folder):
    identity = identify(str(folder))
    frozen = family_of(str(folder)).load(identity, CPU, "fp32")
    with torch.no_grad():
        expected, found = frozen(clips()), trainable(folder)(clips())
    assert list(found.lengths) == [5, 2, 1]
    assert torch.equal(found.valid, expected.valid)
    torch.testing.assert_close(found.frames, expected.frames, rtol=0, atol=2e-5)


def test_gradients_reach_every_weight_that_a_stage_has_and_training_mode_changes_no_crop(folder):
    """Dropout is off. What no output depends on, such as mask tokens, has no gradient."""
    backbone = trainable(folder, dropout=0.0)
    with torch.no_grad():
        still = backbone(clips()).frames
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.train()
    frames = backbone(clips()).frames
    torch.testing.assert_close(frames, still, rtol=0, atol=2e-5)
    assert all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())
    (frames * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    named = [p for stage in backbone.stages() for part in stage.modules for p in part.parameters()]
    assert len({id(p) for p in named}) == len(named)
    without = {
        name
        for name, p in backbone.named_parameters()
        if any(p is one for one in named) and (p.grad is None or not p.grad.any())
    }
    assert all(name.endswith(("mask_token", "k_proj.bias")) for name in without)
    unstaged = {name for name, p in backbone.named_parameters() if not any(p is one for one in named)}
    assert all("pooler" in name or "features" in name for name in unstaged)


def test_it_is_saved_as_a_backbone_with_the_same_features(folder, tmp_path):
    backbone = trainable(folder)
    with torch.no_grad():
        for part in backbone.stages()[-1].modules:
            for parameter in part.parameters():
                parameter.add_(0.05)
        moved = backbone(clips()).frames
        (tmp_path / "out").mkdir()
        backbone.save(tmp_path / "out")
        identity = identify(str(tmp_path / "out"))
        again = family_of(identity.source).load(identity, CPU, "fp32")(clips()).frames
        torch.testing.assert_close(again, moved, rtol=0, atol=2e-5 * max(1.0, float(moved.abs().max())))
        restored = trainable(folder)
        restored.restore(tmp_path / "out")
        assert torch.equal(restored(clips()).frames, moved)
    assert identity.fingerprint["weights_sha256"] != identify(str(folder)).fingerprint["weights_sha256"]
    assert identity.fingerprint.get("pooling") == identify(str(folder)).fingerprint.get("pooling")


def test_stages_are_in_order_and_attention_is_the_last(folder):
    names = [stage.name for stage in trainable(folder).stages()]
    layers = [name for name in names if name.startswith("layer ")]
    assert names[: 1 + len(layers)] == ["cnn", *layers]
    if folder.name == "iresnet":
        has_attention = json.loads((folder / "config.json").read_text())["attention"] != "none"
        assert names == ["cnn", *FIVE, "output", *(["attention"] if has_attention else [])]


def test_attention_that_is_new_learns_from_the_first_step(tmp_path):
    """Its last layers are zeros, behind which no gradient reaches the layers before them yet."""
    backbone = trainable(saved(tmp_path / "new", WITH_ATTENTION, without_attention()))
    backbone(clips()).frames.pow(3).sum().backward()
    gradients = {name: p.grad.abs().max() for name, p in backbone.network.attention.named_parameters()}
    assert min(gradients[name] for name in ("local.2.weight", "channel.2.weight", "channel.2.bias")) > 0


def without_attention():
    from tests.extract.backbones.test_iresnet import random_weights

    return {name: value for name, value in random_weights(WITH_ATTENTION).items() if "attention" not in name}


@pytest.mark.parametrize("kind", ["iresnet", "vit", "clip", "swin"])
def test_checkpointing_changes_no_gradient(tmp_path, kind):
    place = saved(tmp_path / "i", WITH_ATTENTION) if kind == "iresnet" else save(tmp_path / kind, kind)
    found = []
    for again in (False, True):
        backbone = trainable(place, checkpointing=again, dropout=0.0).train()
        backbone(clips()).frames.square().mul(torch.arange(8)[:, None]).sum().backward()
        found.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in found[0].values())
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6 * largest)


def test_what_a_model_cannot_do_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="cannot checkpoint the layers of a convnext model; leave out"):
        trainable(save(tmp_path / "convnext", "convnext"), checkpointing=True)
    with pytest.raises(BackboneError, match="no query and value layers"):
        trainable(tmp_path / "convnext").adapter_targets()
    with pytest.raises(BackboneError, match="no linear layers for adapters"):
        trainable(saved(tmp_path / "i", WITH_ATTENTION)).adapter_targets()
    assert trainable(save(tmp_path / "vit", "vit")).adapter_targets()[1] in (["q_proj", "v_proj"], ["query", "value"])


def test_dropout_is_that_of_the_checkpoint_unless_it_is_given(tmp_path):
    place = save(tmp_path / "vit", "vit")
    assert {p.p for p in trainable(place).modules() if isinstance(p, torch.nn.Dropout)} == {0.0}
    dropped = trainable(place, dropout=0.5)
    assert {p.p for p in dropped.modules() if isinstance(p, torch.nn.Dropout)} == {0.5}
    assert dropped.model.config.attention_probs_dropout_prob == 0.5
    torch.manual_seed(0)
    assert not np.allclose(*(dropped.train()(clips()).frames.detach().numpy() for _ in range(2)), atol=1e-3)


def test_every_kind_of_image_encoder_has_layers(tmp_path):
    for name in CASES:
        stages = trainable(save(tmp_path / name.replace(" ", "_"), name)).stages()
        assert [stage.name for stage in stages[:2]] == ["cnn", "layer 1"]


def test_crops_of_weights_that_do_not_learn_are_computed_a_few_at_a_time():
    module, sizes = torch.nn.Linear(1, 1), []

    def embed(faces):
        sizes.append(len(faces))
        return torch.zeros(len(faces), 1)

    faces, empty = [*pictures(1)] * (GROUP + 1), torch.zeros(0, 1)
    for learns in (True, False):
        module.requires_grad_(learns)
        assert in_groups(module, embed, faces, empty).shape == (GROUP + 1, 1)
    assert sizes == [GROUP + 1, GROUP, 1]
