"""What each fusion computes, beside what all of them promise."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tests.train_head.heads.test_every_fusion import DIMS, TARGETS, make_head, make_streams
from train_head.data.clock import rows_at_clock
from train_head.data.streams import Rows
from train_head.errors import TrainSettingsError
from train_head.heads import build_fused, build_head
from train_head.heads.fused import distinct_rows
from train_head.heads.fusions import FUSIONS, fusion_options
from train_head.heads.fusions.fusion import Part
from train_head.heads.transformer import sinusoids


@pytest.mark.parametrize("activation", ["tanh", "gelu", "relu"])
def test_concat_is_summaries_a_hidden_layer_and_the_targets(activation):
    head = make_head("concat", activation=activation).eval()
    streams = make_streams({"audio": [9, 20], "face": [4, 3]})
    joined = torch.cat([e(streams[n].frames, streams[n].lengths).summary for n, e in head.encoders.items()], dim=1)
    _, first, _, _, last, _ = head.fusion.regressor
    hidden = joined @ first.weight.T + first.bias
    hidden = torch.tanh(hidden) if activation == "tanh" else getattr(functional, activation)(hidden)
    torch.testing.assert_close(head(streams), hidden @ last.weight.T + last.bias, atol=1e-6, rtol=1e-5)


def test_late_is_a_weighted_mean_of_whole_heads_over_the_streams_that_are_there():
    options = {"hidden": 8, "output": "sigmoid"}
    torch.manual_seed(0)
    fused = build_fused(dict.fromkeys(DIMS, ("gru", options)), ("late", {}), DIMS, TARGETS, rows=False).eval()
    fused.fusion.scores.data.normal_()
    streams = make_streams({"audio": [9, 20, 0], "face": [4, 0, 3]})
    alone = []
    for name, dim in DIMS.items():
        head = build_head("gru", options, dim, TARGETS).eval()
        head.encoder.load_state_dict(fused.encoders[name].state_dict())
        head.regressor.load_state_dict(fused.fusion.regressors[name].state_dict())
        alone.append(head(streams[name].frames, streams[name].lengths.clamp(min=1)))
    weights = fused.fusion.scores.softmax(dim=1)  # (targets, streams)
    both = weights[:, 0] * alone[0] + weights[:, 1] * alone[1]
    expected = torch.stack([both[0], alone[0][1], alone[1][2]])
    torch.testing.assert_close(fused(streams), expected, atol=1e-6, rtol=1e-5)


def test_late_weighs_streams_for_each_target():
    fusion = FUSIONS["late"]({"a": 1, "b": 1}, 2, fusion_options("late", {}), lambda _: torch.nn.Linear(1, 2))
    fusion(
        {
            "a": Part(torch.ones(4, 1), torch.ones(4, dtype=torch.bool)),
            "b": Part(torch.zeros(4, 1), torch.ones(4, dtype=torch.bool)),
        }
    )[:, 0].sum().backward()
    assert (fusion.scores.grad[0] != 0).all()
    assert (fusion.scores.grad[1] == 0).all()


def test_crossattention_attends_to_every_state_of_the_other_streams_and_to_no_other():
    head = make_head("crossattention", "tcn", query="face").eval()
    assert list(head.fusion.attention) == ["audio"]
    streams = make_streams({"audio": [30, 12], "face": [4, 3]})
    state = head.encoders["audio"](streams["audio"].frames, streams["audio"].lengths).states
    query = head.fusion.project(head.encoders["face"](streams["face"].frames, streams["face"].lengths).summary)
    attention = head.fusion.attention["audio"]
    found = [attention(query[i : i + 1], *[state[i, :n]] * 2)[0] for i, n in enumerate((30, 12))]
    summary = head.encoders["face"](streams["face"].frames, streams["face"].lengths).summary
    expected = head.fusion.regressor(torch.cat([summary, torch.cat(found)], dim=1))
    torch.testing.assert_close(head(streams), expected, atol=1e-5, rtol=1e-5)


def test_a_query_that_is_no_stream_is_refused_and_the_nearest_named():
    with pytest.raises(TrainSettingsError, match=r"unknown stream in fusion.query 'fase'; did you mean 'face'"):
        make_head("crossattention", query="fase")


def test_the_stream_that_queries_may_have_a_summary_only():
    heads = {"audio": ("gru", {}), "face": ("mean", {})}
    build_fused(heads, ("crossattention", {"query": "face"}), DIMS, TARGETS, rows=False)
    with pytest.raises(TrainSettingsError, match=r"head 'mean' .* reads of the stream 'face'"):
        build_fused(heads, ("crossattention", {"query": "audio"}), DIMS, TARGETS, rows=False)


def test_the_transformer_has_the_layers_of_the_va_systems():
    fused = build_fused(dict.fromkeys(DIMS, ("gru", {})), ("transformer", {}), DIMS, 2, rows=True)
    first, slope, second = fused.fusion.project
    layer = fused.fusion.encoder.layers[0]
    assert (first.out_features, slope.negative_slope, second.out_features) == (256, 0.1, 128)
    assert (layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p) == (4, 128, 0.3)
    assert (len(fused.fusion.encoder.layers), layer.norm_first) == (4, False)


def test_the_transformer_knows_the_order_of_rows_only_with_positions():
    vectors, present = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    order = torch.tensor([5, 0, 4, 1, 3, 2])
    for positions in (False, True):
        options = fusion_options("transformer", {"positions": positions})
        fusion = FUSIONS["transformer"]({"a": 4}, 2, options, torch.nn.Identity).eval()
        found = fusion({"a": Part(vectors, present)})
        turned = fusion({"a": Part(vectors[:, order], present)})
        assert torch.allclose(turned, found[:, order], atol=1e-5) != positions
    assert sinusoids(6, 4, vectors).shape == (6, 4)


def test_a_clip_is_the_mean_over_the_rows_of_its_clock():
    clip = build_fused(
        dict.fromkeys(DIMS, ("gru", {})), ("transformer", {}), DIMS, TARGETS, rows=False, clock="face"
    ).eval()
    streams = make_streams({"audio": [20], "face": [4]})
    found = clip(streams)
    per_row = build_fused(dict.fromkeys(DIMS, ("gru", {})), ("transformer", {}), DIMS, TARGETS, rows=True).eval()
    per_row.load_state_dict(clip.state_dict())
    at = {"audio": torch.tensor([[0, 5, 10, 15]]), "face": torch.tensor([[0, 1, 2, 3]])}
    rows = {name: Rows(r.frames, r.lengths, None, at[name]) for name, r in streams.items()}
    torch.testing.assert_close(found, per_row(rows).mean(dim=1), atol=1e-6, rtol=1e-5)


def test_reference_rows_are_those_of_the_clock_or_of_the_first_stream_that_is_there():
    streams = make_streams({"audio": [7, 0, 3], "face": [2, 3, 0]})
    held = {name: rows.at for name, rows in rows_at_clock(streams, "face").items()}
    assert all((at[:, 3:] == -1).all() for at in held.values())
    assert {name: at[:, :3].tolist() for name, at in held.items()} == {
        "audio": [[0, 5, -1], [-1, -1, -1], [0, 1, 2]],
        "face": [[0, 1, -1], [0, 1, 2], [-1, -1, -1]],
    }


def test_a_clock_may_have_times_of_its_own():
    frames = torch.zeros(1, 4, 2)
    times = torch.tensor([[[0.0, 0.2], [0.2, 0.4], [0.9, 1.1], [0, 0]]])
    streams = {
        "face": Rows(frames, torch.tensor([3]), times=times),
        "audio": Rows(frames, torch.tensor([4]), hop=0.25),
    }
    assert rows_at_clock(streams, "face")["audio"].at.tolist() == [[0, 0, 3, -1]]
    assert rows_at_clock(streams, "audio")["face"].at.tolist() == [[0, 1, -1, -1]]


def test_a_stream_of_which_nothing_says_when_it_is_has_no_clock():
    streams = make_streams({"audio": [7], "face": [2]})
    streams["face"] = Rows(streams["face"].frames, streams["face"].lengths)
    with pytest.raises(TrainSettingsError, match=r"the stream 'face' have neither a hop nor times.*--hop"):
        rows_at_clock(streams, "audio")
    make_head("late")(streams)


@pytest.mark.parametrize(
    ("fusion", "option", "value"),
    [
        ("crossattention", "width", 510),
        ("transformer", "hidden", 126),
        ("transformer", "width_in", 0),
        ("transformer", "slope", -1),
        ("transformer", "positions", 1),
        ("crossattention", "query", 3),
        ("concat", "activation", "sine"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(fusion, option, value):
    with pytest.raises(TrainSettingsError, match=option):
        fusion_options(fusion, {option: value})


def test_layers_of_its_own_for_each_target_give_what_they_give_alone():
    shared, own = make_head("transformer", rows=True), make_head("transformer", rows=True, per_target=True)
    assert sum(p.numel() for p in own.fusion.regressor.parameters()) > sum(
        p.numel() for p in shared.fusion.regressor.parameters()
    )
    states = torch.randn(2, 5, 16)
    values = own.fusion.regressor(states)
    assert values.shape == (2, 5, TARGETS)
    for k, layers in enumerate(own.fusion.regressor.layers):
        assert torch.equal(values[..., k : k + 1], layers(states))
    values[..., 0].sum().backward()
    assert all((p.grad != 0).any() for p in own.fusion.regressor.layers[0].parameters())
    assert all(p.grad is None or not p.grad.any() for p in own.fusion.regressor.layers[1].parameters())


@pytest.mark.parametrize("fusion", ["concat", "late"])
def test_label_rows_that_hold_the_same_rows_are_predicted_once_and_all_get_the_value(fusion, monkeypatch):
    head = make_head(fusion, rows=True).eval()
    streams = make_streams({"audio": [9, 20], "face": [4, 0]}, rows=True)
    streams = {name: replace(rows, at=rows.at.repeat_interleave(6, dim=1)) for name, rows in streams.items()}
    values = head(streams)
    with monkeypatch.context() as patch:
        patch.setattr(head.fusion, "row_by_row", False, raising=False)
        torch.testing.assert_close(values, head(streams), atol=1e-6, rtol=1e-5)
    fewer, run = distinct_rows(streams)
    assert fewer["audio"].at.shape[1] < streams["audio"].at.shape[1]
    for name, rows in streams.items():
        assert torch.equal(fewer[name].at.gather(1, run), rows.at)
    single = {name: replace(rows, at=torch.arange(4)[None].repeat(2, 1)) for name, rows in streams.items()}
    assert distinct_rows(single)[1] is None
