"""What every fusion promises, with any encoders in front of it: a name in FUSIONS is all that it takes."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from tests.train_head.heads.test_every_head import FILLERS, SMALL, has, make_clips, pad
from train_head.data.streams import Rows
from train_head.errors import TrainSettingsError
from train_head.heads import HEADS, SUMMARY_ONLY, build_fused
from train_head.heads.fused import FusedHead
from train_head.heads.fusions import FUSIONS, Reading, fusion_options

TARGETS = 3
DIMS = {"audio": 12, "face": 5}
HOPS = {"audio": 0.1, "face": 0.5}
LENGTHS = {"audio": [45, 0, 31, 7, 0], "face": [4, 9, 0, 2, 0]}
NARROW = {"hidden": 16, "width": 8, "width_in": 12, "heads": 2, "layers": 2}


def make_head(fusion: str, encoder: str = "gru", *, rows: bool = False, seed: int = 0, **options) -> FusedHead:
    """A small one, whose learned vectors are not zero."""
    torch.manual_seed(seed)
    known = {key: value for key, value in SMALL.items() if has(encoder, key)}
    own = {field.name for field in fields(FUSIONS[fusion].Options)}
    small = {key: value for key, value in (NARROW | options).items() if key in own}
    head = build_fused(dict.fromkeys(DIMS, (encoder, known)), (fusion, small), DIMS, TARGETS, rows=rows)
    with torch.no_grad():
        for vector in head.missing.values():
            vector.normal_()
    return head


def can(fusion: str, encoder: str) -> bool:
    """Whether a fusion of summaries, or one that reads states, can have this encoder."""
    reads = FUSIONS[fusion].reads(list(DIMS), fusion_options(fusion, {}), rows=False)
    return encoder not in SUMMARY_ONLY or set(reads.values()) == {Reading.SUMMARY}


def make_streams(lengths=LENGTHS, filler=0.0, extra=0, *, rows=False, invalid=()) -> dict[str, Rows]:
    """Streams of clips; some rows are not valid, and for targets per row there are reference rows of 0.3 s."""
    count = len(next(iter(lengths.values())))
    reference = torch.tensor([3 + 2 * (i % 3) for i in range(count)])
    streams = {}
    for name, dim in DIMS.items():
        frames, counts = pad(make_clips([max(1, n) for n in lengths[name]], dim), filler, extra)
        counts = counts * (torch.tensor(lengths[name]) > 0)
        valid = torch.ones(frames.shape[:2], dtype=torch.bool)
        for row in invalid:
            valid[:, row::7] = False
        frames = torch.where(valid.unsqueeze(-1), frames, filler)
        at = None
        if rows:
            step = torch.arange(int(reference.max()))
            at = (step * 0.3 / HOPS[name] + 1e-6).floor().long()[None].repeat(count, 1)
            at[(at >= counts[:, None]) | (step >= reference[:, None])] = -1
        streams[name] = Rows(frames, counts, valid if invalid else None, at, HOPS[name])
    return streams


def one(rows: Rows, i: int) -> Rows:
    """A clip without its neighbours, and without the padding that they need."""
    length = max(1, int(rows.lengths[i]))
    at = None if rows.at is None else rows.at[i : i + 1]
    valid = None if rows.valid is None else rows.valid[i : i + 1, :length]
    return replace(rows, frames=rows.frames[i : i + 1, :length], lengths=rows.lengths[i : i + 1], valid=valid, at=at)


def each_alone(head, streams):
    clips = len(next(iter(streams.values())).lengths)
    return torch.cat([head({name: one(rows, i) for name, rows in streams.items()}) for i in range(clips)])


def assert_gradients(head):
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("encoder", HEADS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_padding_neighbours_and_missing_streams_never_change_a_clip(fusion, encoder):
    if not can(fusion, encoder):
        with pytest.raises(TrainSettingsError, match=f"has no state per row, which the fusion {fusion!r} reads"):
            make_head(fusion, encoder)
        return
    head = make_head(fusion, encoder).eval()
    streams = make_streams(filler=1e30, extra=3)
    with torch.inference_mode():
        together, alone = head(streams), each_alone(head, streams)
    assert together.shape == (5, TARGETS)
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
@settings(max_examples=25, deadline=None)
@given(
    clips=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), min_size=1, max_size=5),
    filler=st.sampled_from(FILLERS),
    extra=st.sampled_from([0, 1, 9]),
    invalid=st.sets(st.integers(0, 6), max_size=7),
)
def test_no_padding_no_row_that_is_not_valid_and_no_neighbour_changes_a_clip(
    fusion, rows, clips, filler, extra, invalid
):
    """Whatever stands where nothing counts: with all seven rows not valid, the streams are missing in every clip."""
    lengths = {name: [clip[i] for clip in clips] for i, name in enumerate(DIMS)}
    head = make_head(fusion, rows=rows).eval()
    filled = make_streams(lengths, filler, extra, rows=rows, invalid=invalid)
    with torch.inference_mode():
        together = head(filled)
        alone = each_alone(head, make_streams(lengths, rows=rows, invalid=invalid))
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_stream_and_every_learned_vector_learns(fusion, rows):
    head = make_head(fusion, rows=rows).train()
    head(make_streams(rows=rows)).square().sum().backward()
    assert_gradients(head)


@pytest.mark.parametrize("encoder", HEADS)
def test_a_stream_without_a_valid_row_is_missing_and_every_gradient_finite(encoder):
    head, streams = make_head("concat", encoder).eval(), make_streams({"audio": [9, 20], "face": [4, 1]})
    valid = torch.ones(streams["face"].frames.shape[:2], dtype=torch.bool)
    valid[1] = False
    found = head(streams | {"face": replace(streams["face"], valid=valid)})
    torch.testing.assert_close(found, head(make_streams({"audio": [9, 20], "face": [4, 0]})), atol=1e-5, rtol=1e-5)
    found.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_a_missing_stream_holds_reaches_nothing(fusion, rows):
    head = make_head(fusion, rows=rows).eval()
    streams = make_streams({"audio": [9, 0], "face": [4, 3]}, rows=rows)
    frames = streams["audio"].frames.clone()
    frames[1] = 7.0
    other = streams | {"audio": replace(streams["audio"], frames=frames.requires_grad_())}
    torch.testing.assert_close(head(other), head(streams))
    head(other).sum().backward()
    assert (frames.grad[1] == 0).all()


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_stream_that_a_whole_batch_lacks_is_the_one_that_each_clip_lacks(fusion, rows):
    head = make_head(fusion, rows=rows)
    for missing in DIMS:
        lengths = {"audio": [9, 20], "face": [4, 3]} | {missing: [0, 0]}
        streams = make_streams(lengths, rows=rows)
        head.eval()
        with torch.inference_mode():
            found = head(streams)
        torch.testing.assert_close(found, each_alone(head, streams), atol=1e-5, rtol=1e-5)
        empty = replace(streams[missing], valid=torch.zeros(2, 1, dtype=torch.bool), lengths=torch.ones(2).long())
        torch.testing.assert_close(head(streams | {missing: empty}), found, atol=1e-5, rtol=1e-5)
        assert head.train()(streams).isfinite().all()


@pytest.mark.parametrize("encoder", [name for name in HEADS if name not in SUMMARY_ONLY])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_values_of_reference_rows_are_those_of_the_clip_alone(fusion, encoder):
    head = make_head(fusion, encoder, rows=True).eval()
    streams = make_streams({"audio": [45, 20, 0], "face": [4, 9, 1]}, 1e30, 2, rows=True)
    with torch.inference_mode():
        together, alone = head(streams), each_alone(head, streams)
    assert together.shape == (3, 7, TARGETS)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_bfloat16_matrix_products_stay_near_float32_and_train(fusion, rows):
    head, streams = make_head(fusion, rows=rows).eval(), make_streams(rows=rows)
    with torch.autocast("cpu", torch.bfloat16):
        low = head(streams).float()
    low.square().sum().backward()
    assert_gradients(head)
    torch.testing.assert_close(low, head(streams), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_weights_survive_a_safetensors_file(fusion, rows):
    head, other = make_head(fusion, rows=rows).eval(), make_head(fusion, rows=rows, seed=1).eval()
    other.load_state_dict(load(save({key: value.contiguous() for key, value in head.state_dict().items()})))
    streams = make_streams(rows=rows)
    assert torch.equal(head(streams), other(streams))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_default_options_work(fusion):
    head = build_fused(dict.fromkeys(DIMS, ("gru", {})), (fusion, {}), DIMS, TARGETS, rows=False).eval()
    assert head(make_streams()).shape == (5, TARGETS)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fusion_says_whether_a_row_depends_on_others(fusion):
    head = make_head(fusion, "tcn", rows=True).eval()
    streams = make_streams({"audio": [200], "face": [200]}, rows=True)
    streams = {name: replace(r, frames=r.frames.clone().requires_grad_()) for name, r in streams.items()}
    head(streams)[0, 0].square().sum().backward()
    beyond = [rows.frames.grad[0, head.encoders[name].reach[1] + 1 :] for name, rows in streams.items()]
    assert all((grad == 0).all() for grad in beyond) == head.fusion.row_by_row


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_unknown_option_is_refused_and_the_nearest_named(fusion):
    known = [field.name for field in fields(FUSIONS[fusion].Options)]
    near = f"; did you mean '{known[0]}'" if known else ""
    wrong = known[0] + "s" if known else "hidden"
    with pytest.raises(TrainSettingsError, match=rf"unknown option of fusion '{fusion}' '{wrong}'{near}"):
        fusion_options(fusion, {wrong: 3})


def test_an_unknown_fusion_is_refused_and_the_nearest_named():
    with pytest.raises(TrainSettingsError, match=r"unknown fusion 'concatt'; did you mean 'concat'"):
        fusion_options("concatt", {})
