"""Heads against torch's own packed LSTM, and the promises every head makes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from train_head.errors import TrainSettingsError
from train_head.heads import HEADS, LstmHead, build_head


class IndependentPaperHead(nn.Module):
    """The paper's head written anew, one clip at a time through a PackedSequence."""

    def __init__(self, head: LstmHead) -> None:
        super().__init__()
        dim, hidden = head.lstm.input_size, head.lstm.hidden_size
        self.lstm = nn.LSTM(dim, hidden, head.lstm.num_layers)
        self.first = nn.Linear(dim + hidden, dim + hidden)
        self.second = nn.Linear(dim + hidden, head.regressor[2].out_features)
        self.lstm.load_state_dict(head.lstm.state_dict())
        self.first.load_state_dict(head.regressor[0].state_dict())
        self.second.load_state_dict(head.regressor[2].state_dict())

    def forward(self, clips: list[torch.Tensor]) -> torch.Tensor:
        packed = nn.utils.rnn.pack_sequence(clips, enforce_sorted=False)
        _, (state, _) = self.lstm(packed)
        mean = torch.stack([clip.mean(0) for clip in clips])
        return self.second(torch.tanh(self.first(torch.cat([mean, state[-1]], dim=1))))


def pad(clips: list[torch.Tensor], filler: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(clip) for clip in clips])
    return nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=filler), lengths


def make_clips(lengths: list[int], dim: int = 12, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, dim, generator=generator) for n in lengths]


@pytest.mark.parametrize("hidden", [0, 20])
def test_the_paper_head_equals_an_independent_packed_lstm(hidden):
    clips = make_clips([1, 40, 7, 375, 2])
    head = build_head("lstm", {"hidden": hidden}, 12, 6).eval()
    with torch.inference_mode():
        torch.testing.assert_close(head(*pad(clips)), IndependentPaperHead(head)(clips), atol=1e-5, rtol=0)


def test_the_gradients_of_the_paper_head_equal_those_of_the_packed_lstm():
    clips = make_clips([5, 31, 12])
    head = build_head("lstm", {"dropout": 0.0}, 12, 6)
    oracle = IndependentPaperHead(head)
    head(*pad(clips)).square().sum().backward()
    oracle(clips).square().sum().backward()
    for name, parameter in oracle.lstm.named_parameters():
        torch.testing.assert_close(dict(head.lstm.named_parameters())[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(head.regressor[0].weight.grad, oracle.first.weight.grad, atol=1e-5, rtol=1e-4)


def test_the_defaults_are_the_papers_sizes():
    head = build_head("lstm", {}, 1027, 6)
    assert (head.lstm.input_size, head.lstm.hidden_size, head.lstm.num_layers) == (1027, 1027, 2)
    assert head.lstm.dropout == 0.1
    assert not head.lstm.bidirectional
    assert [layer.out_features for layer in head.regressor if isinstance(layer, nn.Linear)] == [2054, 6]


def test_without_the_global_vector_only_the_last_state_is_used():
    head = build_head("lstm", {"global_vector": False, "layers": 1}, 12, 2)
    assert head.regressor[0].in_features == 12


@pytest.mark.parametrize(("output", "low", "high"), [("tanh", -1, 1), ("sigmoid", 0, 1)])
def test_an_output_activation_bounds_the_predictions(output, low, high):
    head = build_head("lstm", {"output": output}, 12, 3).eval()
    values = head(*pad([100 * clip for clip in make_clips([3, 9])]))
    assert ((values > low) & (values < high)).all()


def test_the_mean_head_is_a_linear_layer_on_the_time_mean():
    clips = make_clips([3, 50])
    head = build_head("mean", {}, 12, 4)
    expected = head.linear(torch.stack([clip.mean(0) for clip in clips]))
    torch.testing.assert_close(head(*pad(clips)), expected)


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), filler=st.sampled_from([0.0, 1e4, float("nan")]))
def test_padding_and_neighbours_never_change_a_clip(name, lengths, filler):
    torch.manual_seed(0)
    clips = make_clips(lengths)
    head = build_head(name, {}, 12, 3).eval()
    with torch.inference_mode():
        together = head(*pad(clips, filler))
        alone = torch.cat([head(*pad([clip])) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstmm", {}, "did you mean 'lstm'"),
        ("lstm", {"hiden": 3}, "did you mean 'hidden'"),
        ("lstm", {"dropout": 1.5}, "dropout must lie in"),
        ("lstm", {"layers": 0}, "layers 1 or more"),
        ("lstm", {"output": "relu"}, "output must be one of"),
        ("mean", {"hidden": 3}, "unknown option of head 'mean'"),
    ],
)
def test_a_wrong_head_or_option_is_named(name, options, message):
    with pytest.raises(TrainSettingsError, match=message):
        build_head(name, options, 12, 3)
