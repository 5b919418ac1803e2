"""Image encoders in batches, against the transformers library on each image alone with its own image processor."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from extract.backbones import MODEL_TYPES, identify
from extract.backbones.image.encoder import pack
from extract.backbones.image.family import IMAGES
from extract.backbones.image.models import MODELS
from extract.backbones.packed_weights import can_pack
from extract.errors import BackboneError, ExtractSettingsError
from extract.faces.reading import FaceCrops
from tests.extract.image_checkpoints import CASES, library, save

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Save a checkpoint once per name."""
    root, saved = tmp_path_factory.mktemp("image-encoders"), {}

    def checkpoint(name):
        if name not in saved:
            saved[name] = save(root / name.replace(" ", "_"), name)
        return saved[name]

    return checkpoint


def pictures(count, height=112, width=112, seed=0):
    """(count, height, width, 3) uint8: smooth shapes with edges, so that resampling matters."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij"), -1)
    waves = [np.sin(grid @ rng.uniform(2, 30, (2, 3)) + rng.uniform(0, 6, 3)) for _ in range(count)]
    return np.stack([np.where(wave > 0.5, 250, 120 + 110 * wave) for wave in waves]).astype(np.uint8)


def clip(images, valid=None):
    valid = np.ones(len(images), bool) if valid is None else np.array(valid)
    none = np.zeros((len(images), 4), np.float32)
    return FaceCrops(seconds=1.0, images=images, valid=valid, times=None, boxes=none, landmarks=none, scores=none[:, 0])


def load(folder, precision="fp32", pooling=None):
    identity = IMAGES.identify(str(folder), pooling)
    return identity, IMAGES.load(identity, CPU, precision)


def test_every_architecture_is_tried():
    assert {name.split()[0] for name in CASES} | {"timm_wrapper"} == set(MODELS)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_equals_the_library_on_each_image_alone(checkpoints, name):
    folder = checkpoints(name)
    given = [*pictures(9)], [*pictures(3, 96, 130, seed=1)], [*pictures(2, 224, 224, seed=2)]
    images = [image for some in given for image in some]
    seen = torch.arange(len(images)) % 5 != 3
    clips = [clip(some, part) for some, part in zip(given, np.split(seen.numpy(), [9, 12]), strict=True)]
    kind = MODELS[json.loads((folder / "config.json").read_text())["model_type"]]
    for output in kind.outputs:
        if name == "vit classifier" and output == "pooled":  # its checkpoint has no weights for that
            continue
        identity, backbone = load(folder, pooling=output)
        with torch.inference_mode():
            features = backbone(clips)
        expected = library(folder, [images[i] for i in seen.nonzero()[:, 0]], output)
        assert (list(features.lengths), features.valid.tolist()) == ([9, 3, 2], seen.tolist())
        assert features.frames.shape == (14, identity.dim)
        assert (expected[0] - expected[1]).abs().max() > 0.01  # images make a difference
        torch.testing.assert_close(features.frames[seen], expected, atol=2e-4, rtol=0)
        assert not features.frames[~seen].any()
        assert identity.fingerprint["pooling"] == output
    assert identify(str(folder)).fingerprint["pooling"] == kind.outputs[0]


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_near_float32(checkpoints, name):
    images = pictures(11)
    with torch.inference_mode():
        low, high = (load(checkpoints(name), precision)[1].embed(images) for precision in ("bf16", "fp32"))
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)
    assert cosine_similarity(low, high, dim=1).min() >= 0.999
    shared = high.mean(dim=0)  # what differs between images must survive as well
    assert cosine_similarity(low - shared, high - shared, dim=1).min() >= 0.9


def test_a_batch_equals_single_images(checkpoints):
    _, backbone = load(checkpoints("vit"))
    images = pictures(10)
    with torch.inference_mode():
        together, alone = backbone.embed(images), torch.cat([backbone.embed(images[i : i + 1]) for i in range(10)])
        nothing = backbone([clip(images[:2], [False, False])])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (nothing.frames.shape, nothing.frames.any().item()) == ((2, 32), False)


def test_a_clip_in_blocks_equals_the_whole_clip(checkpoints):
    _, backbone = load(checkpoints("clip"))
    images = pictures(9)
    images[[1, 4, 5]] = 0  # which are computed too; `BatchComputer` sets rows that are not valid to zero
    with torch.inference_mode():
        whole = backbone([clip(images)]).frames
        blocks = torch.cat(list(backbone.in_blocks(torch.from_numpy(images).split([4, 2, 3]))))
    torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=0)


def test_the_linear_layers_use_packed_weights_where_they_can(checkpoints):
    _, backbone = load(checkpoints("vit"), "bf16")
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    layers = [module for module in backbone.modules() if isinstance(module, kinds)]
    assert len(layers) == 2 * 6 + 1 + 1  # of two blocks, the patches and the pooler
    assert all(layer.weight.numel() == 0 for layer in layers)
    assert can_pack(torch.zeros(8, 8, dtype=torch.bfloat16)) in (True, False)


class Perceptron(nn.Module):
    """Gated, the activation reads one half of the first layer's numbers."""

    def __init__(self, *, gated):
        super().__init__()
        self.gated = gated
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(32 if gated else 64, 32)

    def forward(self, x):
        seen = self.fc1(x)
        if not self.gated:
            return self.fc2(self.act(seen))
        gate, values = seen.chunk(2, dim=-1)
        return self.fc2(self.act(gate) * values)


@pytest.mark.parametrize("gated", [False, True])
def test_a_gelu_is_computed_with_the_layer_before_it_unless_it_reads_half_of_that(gated):
    torch.manual_seed(0)
    model, x = Perceptron(gated=gated), torch.randn(5, 32)
    with torch.inference_mode():
        expected = model(x)
        pack(model, torch.float32)
        torch.testing.assert_close(model(x), expected)
    assert isinstance(model.act, nn.Identity) is not gated


def test_an_output_that_a_model_lacks_is_refused(checkpoints):
    with pytest.raises(ExtractSettingsError, match="is a siglip model, of which emi takes pooled; leave it out"):
        identify(str(checkpoints("siglip")), pooling="cls")
    with pytest.raises(ExtractSettingsError, match="is a vit model, of which emi takes cls or pooled"):
        identify(str(checkpoints("vit")), pooling="mean")
    with pytest.raises(ExtractSettingsError, match=r"--pooling cls chooses the output of an image encoder.*'silero'"):
        identify("silero", pooling="cls")
    with pytest.raises(BackboneError, match=r"missing weight.*pooler.dense"):
        load(checkpoints("vit classifier"), pooling="pooled")


def changed(folder, into, change):
    """Copy a checkpoint with other weights."""
    shutil.copytree(folder, into)
    tensors = safetensors.torch.load_file(into / "model.safetensors")
    safetensors.torch.save_file(change(tensors), into / "model.safetensors", metadata={"format": "pt"})
    return into


@pytest.mark.parametrize("name", ["vit", "vit classifier", "dinov2", "clip", "siglip_vision_model", "swin", "convnext"])
def test_weights_that_do_not_fit_are_named(checkpoints, tmp_path, name):
    folder = checkpoints(name)
    names = sorted(safetensors.torch.load_file(folder / "model.safetensors"))
    inside = next(
        key
        for key in reversed(names)
        if ("1" in key or "layer" in key) and key.endswith("weight") and "text" not in key
    )
    without = changed(folder, tmp_path / "a", lambda all: {k: v for k, v in all.items() if k != inside})
    with pytest.raises(BackboneError, match=r"1 missing weight\(s\) of the encoder.*do not fit config.json"):
        load(without)
    longer = changed(folder, tmp_path / "b", lambda all: all | {inside: torch.zeros(3, 3)})
    with pytest.raises(BackboneError, match=r"misshapen weight\(s\) of the encoder"):
        load(longer)
    other = inside.replace("weight", "unheard_of")
    more = changed(folder, tmp_path / "c", lambda all: all | {other: torch.zeros(3)})
    with pytest.raises(BackboneError, match=r"1 unexpected weight\(s\) of the encoder.*unheard_of"):
        load(more)


def test_a_deeper_checkpoint_than_its_configuration_is_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("vit"), tmp_path / "deep")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(BackboneError, match=r"unexpected weight\(s\) of the encoder"):
        load(folder)


def test_files_that_are_missing_or_do_not_fit_are_refused(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("vit"), tmp_path / "a")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"has no preprocessor_config.json, which says how images are scaled"):
        identify(str(folder))
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 48, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(BackboneError, match="the model does not take what its image processor gives"):
        load(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Unheard"}))
    with pytest.raises(BackboneError, match="cannot build its image processor"):
        load(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BackboneError, match=r"model.safetensors is damaged"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="the checkpoint is incomplete"):
        identify(str(folder))


def test_settings_of_a_processor_for_images_and_text_are_found(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints("clip"), tmp_path / "a")
    alone = folder / "preprocessor_config.json"
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(alone.read_text())}))
    before, _ = identify(str(folder)), alone.unlink()
    assert identify(str(folder)).fingerprint == before.fingerprint | {"backbone": "a"}
    with torch.inference_mode():
        torch.testing.assert_close(load(folder)[1].embed(pictures(2)), load(checkpoints("clip"))[1].embed(pictures(2)))


def test_the_configuration_decides_what_a_checkpoint_takes(checkpoints):
    assert all(MODEL_TYPES[kind] is IMAGES for kind in MODELS)
    identity = identify(str(checkpoints("clip")))
    assert (identity.modality, identity.hop_seconds, identity.dim) == ("face", None, 32)
    assert identity.precisions == ("fp32", "bf16", "fp16")
