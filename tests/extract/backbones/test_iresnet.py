"""IResNet against layers written out, with and without LA-SE, in batches and in blocks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import emi
from extract.backbones import identify
from extract.backbones.checkpoint import find_checkpoint, save_checkpoint
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.encoder import load_iresnet
from extract.backbones.iresnet.network import IResNet, load_network
from extract.errors import BackboneError
from extract.faces.reading import FaceCrops

CPU = torch.device("cpu")
SMALL = IResNetConfig(units=(1, 2, 1, 1), widths=(16, 16, 24, 32), dim=24, attention="none")


def norm(x, state, name):
    """Batch normalisation in evaluation mode, over the second axis."""
    mean, variance, weight, bias = (
        state[f"{name}.{part}"].view(1, -1, *[1] * (x.dim() - 2))
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def prelu(x, slopes):
    return x.clamp(min=0) + slopes.view(1, -1, 1, 1) * x.clamp(max=0)


def written_out(state, images, units, gate=None):
    """(images, 3, 112, 112) → (images, dim): the layers by the names of their weights; `gate` turns LA-SE on."""
    x = functional.conv2d(images, state["conv1.weight"], padding=1)
    x = prelu(norm(x, state, "bn1"), state["prelu.weight"])
    for stage, count in enumerate(units, 1):
        for unit in range(count):
            at, stride = f"layer{stage}.{unit}", 2 if unit == 0 else 1
            y = functional.conv2d(norm(x, state, f"{at}.bn1"), state[f"{at}.conv1.weight"], padding=1)
            y = prelu(norm(y, state, f"{at}.bn2"), state[f"{at}.prelu.weight"])
            y = norm(functional.conv2d(y, state[f"{at}.conv2.weight"], stride=stride, padding=1), state, f"{at}.bn3")
            if unit == 0:
                x = norm(
                    functional.conv2d(x, state[f"{at}.downsample.0.weight"], stride=2), state, f"{at}.downsample.1"
                )
            x = x + y
    if gate is not None:
        w = {name.removeprefix("attention."): value for name, value in state.items() if "attention." in name}
        hidden = torch.einsum("nchw,oc->nohw", x, w["local.0.weight"][:, :, 0, 0]) + w["local.0.bias"].view(1, -1, 1, 1)
        place = torch.einsum("nchw,oc->nohw", hidden.clamp(min=0), w["local.2.weight"][:, :, 0, 0]) + w["local.2.bias"]
        x = x * gate(place)
        squeezed = (x.mean((2, 3)) @ w["channel.0.weight"].T + w["channel.0.bias"]).clamp(min=0)
        x = x * gate(squeezed @ w["channel.2.weight"].T + w["channel.2.bias"])[:, :, None, None]
    flat = norm(x, state, "bn2").flatten(1)
    return norm(flat @ state["fc.weight"].T + state["fc.bias"], state, "features")


def random_weights(config):
    """A state dict of which every number changes the embedding."""
    torch.manual_seed(0)
    network = IResNet(config)
    state = network.state_dict()
    for name, value in state.items():
        if name.endswith(("running_var", "norm.weight")) or ("bn" in name and name.endswith("weight")):
            value.uniform_(0.6, 1.4)
        elif value.dim() > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif value.dtype.is_floating_point and value.dim() == 1:
            value.copy_(0.3 * torch.randn_like(value) + (0.25 if "prelu" in name else 0.0))
    state["features.weight"].uniform_(0.6, 1.4)
    for name in ("attention.local.2.weight", "attention.channel.2.weight"):
        if name in state:
            state[name].normal_(0, 0.5)
    return {name: value.clone() for name, value in state.items() if "num_batches" not in name}


def saved(folder, config=SMALL, state=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder, random_weights(config) if state is None else state, config.to_dict())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small IResNet without LA-SE."""
    return saved(tmp_path_factory.mktemp("small") / "iresnet")


def images(count, seed=0):
    """(count, 112, 112, 3) uint8: patches of any colour, with noise."""
    numbers = np.random.default_rng(seed)
    patches = numbers.integers(0, 200, (count, 7, 7, 3)).repeat(16, 1).repeat(16, 2)
    return (patches + numbers.integers(0, 56, (count, 112, 112, 3))).astype(np.uint8)


def faces(pictures, valid=None):
    rows = len(pictures)
    return FaceCrops(
        seconds=rows / 6,
        images=pictures,
        valid=np.ones(rows, bool) if valid is None else np.array(valid),
        times=None,
        boxes=np.zeros((rows, 4), np.float32),
        landmarks=np.zeros((rows, 5, 2), np.float32),
        scores=np.ones(rows, np.float32),
    )


def scaled(pictures):
    return (torch.from_numpy(pictures).double() / 255 * 2 - 1).float().permute(0, 3, 1, 2)


def load(place, precision="fp32"):
    return load_iresnet(find_checkpoint(str(place)), CPU, precision)


@pytest.mark.parametrize("gate", ["no LA-SE", "sigmoid", "2*sigmoid"])
def test_embeddings_are_those_of_the_layers_written_out(tmp_path, gate):
    config = SMALL if gate == "no LA-SE" else replace(SMALL, attention="la-se", gate=gate)
    place = saved(tmp_path / "x", config)
    state, pictures = random_weights(config), images(3)
    gates = {"no LA-SE": None, "sigmoid": torch.sigmoid, "2*sigmoid": lambda x: 2 * torch.sigmoid(x)}
    with torch.inference_mode():
        expected = written_out(state, scaled(pictures), config.units, gates[gate])
        module = load_network(find_checkpoint(str(place)))(scaled(pictures))
        packed = load(place)([faces(pictures)]).frames
    assert expected.std(dim=0).min() > 0.01, "the embedding depends on the picture"
    torch.testing.assert_close(module, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(packed, functional.normalize(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(packed.norm(dim=1), torch.ones(3))


def test_iresnet_50_has_the_published_names_and_shapes():
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,)}
    norms = {"bn1": 64, "bn2": 512, "features": 512}
    inputs = 64
    for stage, (units, width) in enumerate(zip((3, 4, 14, 3), (64, 128, 256, 512), strict=True), 1):
        for unit in range(units):
            at = f"layer{stage}.{unit}"
            norms |= {f"{at}.bn1": inputs, f"{at}.bn2": width, f"{at}.bn3": width}
            shapes |= {f"{at}.conv1.weight": (width, inputs, 3, 3), f"{at}.conv2.weight": (width, width, 3, 3)}
            shapes |= {f"{at}.prelu.weight": (width,)}
            if unit == 0:
                shapes |= {f"{at}.downsample.0.weight": (width, inputs, 1, 1)}
                norms |= {f"{at}.downsample.1": width}
            inputs = width
    shapes |= {"fc.weight": (512, 25088), "fc.bias": (512,)}
    for name, width in norms.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes |= {f"{name}.num_batches_tracked": ()}
    with torch.device("meta"):
        network = IResNet(IResNetConfig(attention="none"))
    assert {name: tuple(value.shape) for name, value in network.state_dict().items()} == shapes


def test_a_new_la_se_changes_no_bit_and_gets_gradients(folder, tmp_path):
    state = find_checkpoint(str(folder)).tensors(lambda _: True)
    new = saved(tmp_path / "new", replace(SMALL, attention="la-se", reduction=2), state)
    pictures = images(4)
    with torch.inference_mode():
        assert torch.equal(load(new)([faces(pictures)]).frames, load(folder)([faces(pictures)]).frames)
    network = load_network(find_checkpoint(str(new)))
    network(scaled(pictures)).square().sum().backward()
    last = {name: weight for name, weight in network.attention.named_parameters() if ".2." in name}
    assert len(last) == 4
    assert all(weight.grad.abs().max() > 0 and not weight.any() for weight in last.values())
    with torch.no_grad():  # one step: now they reach the layers before as well
        for weight in last.values():
            weight -= 0.01 * weight.grad.sign()
    network.zero_grad()
    network(scaled(pictures)).square().sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in network.attention.parameters())


def test_a_trained_la_se_that_is_missing_or_incomplete_is_refused(folder, tmp_path):
    state = find_checkpoint(str(folder)).tensors(lambda _: True)
    trained = replace(SMALL, attention="la-se", gate="sigmoid")
    with pytest.raises(BackboneError, match=r"the gate of config\.json is sigmoid.*hold no LA-SE"):
        load(saved(tmp_path / "none", trained, state))
    state["attention.local.0.bias"] = torch.zeros(2)
    with pytest.raises(BackboneError, match=r"7 missing: attention\.channel\.0\.bias, "):
        load(saved(tmp_path / "some", trained, state))
    with pytest.raises(BackboneError, match=r"1 unknown: attention\.local\.0\.bias"):
        load(saved(tmp_path / "unknown", SMALL, state))


@pytest.mark.parametrize(
    ("key", "value"), [("units", [3, 4, 14]), ("dim", "512"), ("attention", "se"), ("gate", None), ("reduction", 0)]
)
def test_a_configuration_that_cannot_be_used_is_refused(tmp_path, key, value):
    place = saved(tmp_path / "x", SMALL, {"x": torch.zeros(1)})
    save_checkpoint(place, {"x": torch.zeros(1)}, SMALL.to_dict() | {key: value})
    with pytest.raises(BackboneError, match=rf"config\.json: {key} is "):
        identify(str(place))


def test_a_batch_equals_single_clips_and_blocks(folder):
    backbone = load(folder)
    clips = [faces(images(rows, rows)) for rows in (11, 1, 6)]
    with torch.inference_mode():
        together = backbone(clips)
        alone = torch.cat([backbone([clip]).frames for clip in clips])
        blocks = torch.cat(list(backbone.in_blocks(torch.from_numpy(clips[0].images).split(4))))
    assert together.lengths == [11, 1, 6]
    torch.testing.assert_close(together.frames, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.frames[:11], blocks, rtol=0, atol=1e-6)


def test_rows_without_a_face_are_zeros(folder):
    clips = [faces(images(3), [False, True, False]), faces(images(1), [False])]
    with torch.inference_mode():
        features, alone = load(folder)(clips), load(folder)([faces(images(3)[1:2])])
        nothing = load(folder)([clips[1]])
    assert features.valid.tolist() == [False, True, False, False]
    torch.testing.assert_close(features.frames[1:2], alone.frames)
    assert not features.frames[[0, 2, 3]].any()
    assert (nothing.frames.shape, bool(nothing.frames.any())) == ((1, 24), False)


def test_bfloat16_stays_near_float32(folder):
    clips = [faces(images(6))]
    with torch.inference_mode():
        low, high = (load(folder, precision)(clips).frames for precision in ("bf16", "fp32"))
    assert low.dtype == torch.float32
    assert functional.cosine_similarity(low, high).min() > 0.999


def test_a_folder_of_crops_becomes_a_cache(folder, tmp_path):
    pictures = images(3)
    (tmp_path / "crops" / "a").mkdir(parents=True)
    for number, picture in zip((1, 2, 4), pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / "crops" / "a" / f"{number:05d}.png")
    emi.extract(tmp_path / "crops", tmp_path / "f.zarr", backbone=str(folder), fps=5, precision="fp32", dtype="float32")
    with emi.open_cache(tmp_path / "f.zarr") as store, torch.inference_mode():
        clip = store["a"]
        assert (store.header.modality, store.header.dim, store.hop_seconds) == ("face", 24, 0.2)
        assert clip.valid.tolist() == [True, True, False, True]
        np.testing.assert_allclose(clip.frames[clip.valid], load(folder)([faces(pictures)]).frames, atol=1e-6)
