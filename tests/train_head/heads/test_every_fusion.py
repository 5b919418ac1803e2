"""What every fusion promises, with any encoders in front of it."""

import pytest
import torch
from safetensors.torch import load, save

from tests.train_head.heads.test_every_head import SMALL, has, make_clips, pad
from train_head.errors import TrainSettingsError
from train_head.heads import ENCODERS, HEADS, head_options
from train_head.heads.fused import FusedHead, Rows
from train_head.heads.fusions import FUSIONS, build_fusion, fusion_options

TARGETS = 3
DIMS = {"audio": 12, "face": 5}
LENGTHS = {"audio": [45, 1, 31, 7], "face": [4, 9, 1, 2]}


def make_head(fusion: str, encoder: str = "gru", *, rows: bool = False, seed: int = 0) -> FusedHead:
    torch.manual_seed(seed)
    known = {key: value for key, value in SMALL.items() if has(encoder, key)}
    encoders = {name: ENCODERS[encoder](dim, head_options(encoder, known)) for name, dim in DIMS.items()}
    return FusedHead(encoders, lambda widths: build_fusion(fusion, {}, widths, TARGETS), rows=rows)


def make_streams(lengths=LENGTHS, filler: float = 0.0, extra: int = 0) -> dict[str, Rows]:
    streams = {}
    for name, dim in DIMS.items():
        frames, counts = pad(make_clips([max(1, n) for n in lengths[name]], dim), filler, extra)
        streams[name] = Rows(frames, counts * (torch.tensor(lengths[name]) > 0))
    return streams


def one(rows: Rows, i: int) -> Rows:
    length = max(1, int(rows.lengths[i]))
    at = None if rows.at is None else rows.at[i : i + 1]
    valid = None if rows.valid is None else rows.valid[i : i + 1, :length]
    return Rows(rows.frames[i : i + 1, :length], rows.lengths[i : i + 1], valid, at)


@pytest.mark.parametrize("encoder", HEADS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_neighbours_and_missing_streams_never_change_a_clip(fusion, encoder):
    head = make_head(fusion, encoder).eval()
    lengths = {"audio": [45, 0, 31, 7, 0], "face": [4, 9, 0, 2, 0]}
    streams = make_streams(lengths, filler=1e30, extra=3)
    with torch.inference_mode():
        together = head(streams)
        alone = torch.cat([head({name: one(rows, i) for name, rows in streams.items()}) for i in range(5)])
    assert together.shape == (5, TARGETS)
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_stream_and_every_stand_in_learns(fusion):
    head = make_head(fusion).train()
    with torch.no_grad():
        for vector in head.missing.values():
            vector.normal_()
    head(make_streams({"audio": [9, 0, 5], "face": [4, 9, 0]})).square().sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_a_missing_stream_holds_reaches_nothing(fusion):
    head = make_head(fusion).eval()
    streams = make_streams({"audio": [9, 0], "face": [4, 3]})
    frames = streams["audio"].frames.clone()
    frames[1] = 7.0
    other = streams | {"audio": Rows(frames.requires_grad_(), streams["audio"].lengths)}
    torch.testing.assert_close(head(other), head(streams))
    head(other).sum().backward()
    assert (frames.grad[1] == 0).all()


@pytest.mark.parametrize("encoder", ["gru", "tcn", "transformer", "hierarchical", "bilstm", "lstm", "sequence"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows_at_the_reference_clock_are_those_of_the_clip_alone(fusion, encoder):
    head = make_head(fusion, encoder, rows=True).eval()
    streams = make_streams({"audio": [45, 20, 31], "face": [4, 9, 1]})
    at = {
        "audio": torch.tensor([[0, 10, 20, 44], [0, 19, -1, -1], [30, 0, 3, 4]]),
        "face": torch.tensor([[0, 1, 2, 3], [8, -1, 0, 1], [0, 0, -1, 0]]),
    }
    streams = {name: Rows(rows.frames, rows.lengths, None, at[name]) for name, rows in streams.items()}
    with torch.inference_mode():
        together = head(streams)
        alone = torch.cat([head({name: one(rows, i) for name, rows in streams.items()}) for i in range(3)])
    assert together.shape == (3, 4, TARGETS)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_weights_survive_a_safetensors_file(fusion):
    head, other = make_head(fusion).eval(), make_head(fusion, seed=1).eval()
    other.load_state_dict(load(save({key: value.contiguous() for key, value in head.state_dict().items()})))
    assert torch.equal(head(make_streams()), other(make_streams()))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_unknown_option_is_refused_and_the_nearest_named(fusion):
    with pytest.raises(
        TrainSettingsError, match=rf"unknown option of fusion '{fusion}' 'hiden'; did you mean 'hidden'"
    ):
        fusion_options(fusion, {"hiden": 3})


def test_an_unknown_fusion_is_refused_and_the_nearest_named():
    with pytest.raises(TrainSettingsError, match=r"unknown fusion 'concatt'; did you mean 'concat'"):
        fusion_options("concatt", {})
