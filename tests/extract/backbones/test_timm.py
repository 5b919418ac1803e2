"""Models of timm, as its repositories on the hub hold them, against transformers on each image alone."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from extract.backbones import family_of, identify
from extract.backbones.image.family import IMAGES
from extract.errors import BackboneError

CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
CASES = {
    "vit_tiny_patch16_224": (VIT, "head", 32),
    "resnet10t": ({}, "fc", 512),
    "convnext_atto": ({"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 24)}, "head.fc", 24),
}


def save(folder, architecture):
    timm = pytest.importorskip("timm", reason="pip install timm")
    arguments, classifier, _ = CASES[architecture]
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, **arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    pretrained = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "mean": MEAN, "std": STD}
    content = {
        "architecture": architecture,
        "num_classes": 5,
        "model_args": arguments,
        "pretrained_cfg": pretrained | {"classifier": classifier, "num_classes": 5},
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("architecture", CASES)
def test_a_batch_equals_transformers_on_each_image_alone(tmp_path, architecture):
    folder = save(tmp_path / "m", architecture)
    import transformers

    identity = identify(str(folder))
    assert family_of(str(folder)) is IMAGES
    assert (identity.dim, identity.modality, identity.fingerprint["pooling"]) == (
        CASES[architecture][2],
        "face",
        "pooled",
    )
    rng = np.random.default_rng(0)
    images = [np.kron(rng.integers(0, 256, (7, 7, 3)), np.ones((16, 16, 1))).astype(np.uint8) for _ in range(10)]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        found = IMAGES.load(identity, CPU, "fp32").embed(images)
        low = IMAGES.load(identity, CPU, "bf16").embed(images)
        expected = [model(**processor(Image.fromarray(image), return_tensors="pt")).pooler_output for image in images]
    torch.testing.assert_close(found, torch.cat(expected), atol=2e-4, rtol=2e-4)
    assert torch.nn.functional.cosine_similarity(low, found, dim=1).min() >= 0.999


def test_weights_that_do_not_fit_are_named(tmp_path):
    folder = save(tmp_path / "m", "vit_tiny_patch16_224")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for wrong, sentence in (
        ({k: v for k, v in tensors.items() if k != "blocks.1.mlp.fc1.weight"}, "1 missing weight"),
        (tensors | {"blocks.2.mlp.fc1.weight": torch.zeros(3, 3)}, "1 unexpected weight"),
    ):
        safetensors.torch.save_file(wrong, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(BackboneError, match=sentence):
            IMAGES.load(identify(str(folder)), CPU, "fp32")


def test_without_timm_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t", "pretrained_cfg": {}}))
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("extract.backbones.image.family.importlib.util.find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=r"is a model of timm, which is not installed; run: pip install 'emi-mimi"):
        identify(str(tmp_path))
