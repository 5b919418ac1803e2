"""`emi import-weights`: published files become folders that `emi extract` takes; others are refused by name."""

import json

import pytest
import torch
from typer.testing import CliRunner

from emi.cli import app
from extract.backbones import identify
from extract.backbones.checkpoint import find_checkpoint
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.network import IResNet
from extract.backbones.vggish import network as vggish
from extract.errors import BackboneError

SMALL = IResNetConfig(units=(1, 2, 1, 1), widths=(16, 16, 24, 32), dim=24, attention="none")


def command(*arguments):
    result = CliRunner().invoke(app, ["import-weights", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.stdout


@pytest.fixture
def backbone_pth(tmp_path):
    torch.manual_seed(0)
    torch.save(IResNet(SMALL).state_dict(), tmp_path / "backbone.pth")
    return tmp_path / "backbone.pth"


@pytest.mark.parametrize("attention", [None, "none"])
def test_an_iresnet_becomes_a_folder_with_its_sizes(backbone_pth, tmp_path, attention):
    place = tmp_path / "iresnet"
    said = command(backbone_pth, place, *(["--attention", attention] if attention else []))
    assert f"--backbone {place}" in said
    config = json.loads((place / "config.json").read_text())
    assert config == {
        "model_type": "iresnet",
        "units": [1, 2, 1, 1],
        "widths": [16, 16, 24, 32],
        "dim": 24,
        "attention": attention or "la-se",
        "gate": "2*sigmoid",
        "reduction": 16,
    }
    identity = identify(str(place))
    assert (identity.modality, identity.dim) == ("face", 24)
    stored, published = find_checkpoint(str(place)).tensors(lambda _: True), torch.load(backbone_pth)
    assert stored.keys() == {name for name in published if "num_batches_tracked" not in name}
    assert all(torch.equal(stored[name], published[name]) for name in stored)


@pytest.mark.parametrize("last_relu", [True, False])
def test_a_vggish_becomes_a_folder_that_names_its_last_relu(tmp_path, monkeypatch, last_relu):
    monkeypatch.setattr(vggish, "HIDDEN", 8)
    torch.save(vggish.Vggish(last_relu=True).state_dict(), tmp_path / "vggish.pth")
    command(tmp_path / "vggish.pth", tmp_path / "vggish", *([] if last_relu else ["--no-last-relu"]))
    assert json.loads((tmp_path / "vggish/config.json").read_text()) == {"model_type": "vggish", "last_relu": last_relu}
    assert identify(str(tmp_path / "vggish")).dim == 128


def test_missing_and_unknown_weights_are_named(backbone_pth, tmp_path):
    state = torch.load(backbone_pth)
    del state["layer2.1.bn3.bias"]
    state["arcface.weight"] = torch.zeros(3)
    state["fc.bias"] = torch.zeros(7)
    torch.save(state, backbone_pth)
    with pytest.raises(BackboneError) as refused:
        command(backbone_pth, tmp_path / "x")
    for part in ("1 missing: layer2.1.bn3.bias", "1 unknown: arcface.weight", "fc.bias (7,) for (24,)"):
        assert part in str(refused.value)
    assert not (tmp_path / "x").exists()


def test_a_file_without_counters_of_batches_is_taken(backbone_pth, tmp_path):
    state = {name: value for name, value in torch.load(backbone_pth).items() if "num_batches_tracked" not in name}
    torch.save(state, backbone_pth)
    command(backbone_pth, tmp_path / "x")
    assert (tmp_path / "x/model.safetensors").is_file()


class Trap:
    def __reduce__(self):
        return (open, ("/nonexistent/written-by-a-pickle", "w"))


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"model": Trap()}, tmp_path / "bad.pth")
    with pytest.raises(
        BackboneError, match=r"bad\.pth cannot be read as tensors alone; [^.]* save its state_dict\(\) instead$"
    ):
        command(tmp_path / "bad.pth", tmp_path / "x")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"epoch": 3, "state_dict": {}}, "is no state dict, of names and tensors alone; it holds epoch, state_dict"),
        ({"encoder.weight": torch.zeros(1)}, r"holds neither an IResNet .* its first weights are encoder\.weight"),
        ([1], "it holds list"),
    ],
)
def test_other_files_are_refused(tmp_path, content, sentence):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BackboneError, match=sentence):
        command(tmp_path / "other.pth", tmp_path / "x")


def test_what_is_there_is_not_overwritten_and_what_is_not_there_is_said(backbone_pth, tmp_path):
    command(backbone_pth, tmp_path / "x")
    with pytest.raises(BackboneError, match=r"x holds config\.json already"):
        command(backbone_pth, tmp_path / "x")
    with pytest.raises(BackboneError, match=r"gone\.pth is no file"):
        command(tmp_path / "gone.pth", tmp_path / "y")
    with pytest.raises(BackboneError, match="--attention takes la-se or none, got 'se'"):
        command(backbone_pth, tmp_path / "y", "--attention", "se")


def test_a_file_as_a_backbone_is_refused_with_the_command_that_makes_a_folder(backbone_pth):
    with pytest.raises(BackboneError, match=r"is a file, and a backbone is a folder; `emi import-weights "):
        identify(str(backbone_pth))
