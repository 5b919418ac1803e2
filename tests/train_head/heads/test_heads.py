"""Each head against somebody else's code: torch's packed modules, NumPy, SciPy, or a loop over clips."""

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from train_head.errors import TrainSettingsError
from train_head.heads import LstmHead, build_head
from train_head.heads.residual import TcnBlock


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


def test_the_mean_head_is_a_linear_layer_on_the_time_mean():
    clips = make_clips([3, 50])
    head = build_head("mean", {}, 12, 4)
    expected = head.linear(torch.stack([clip.mean(0) for clip in clips]))
    torch.testing.assert_close(head(*pad(clips)), expected)


def set_weights(target: nn.Module, source: nn.Module, suffix: str) -> None:
    """Give one direction of torch's stacked LSTM the weights of a single layer."""
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(target, f"{name}{suffix}").data.copy_(getattr(source, f"{name}_l0").data)


def test_the_gru_head_equals_torchs_packed_gru():
    clips = make_clips([1, 40, 7, 75, 2])
    head = build_head("gru", {"hidden": 9}, 12, 6).eval()
    _, state = head.gru(nn.utils.rnn.pack_sequence(clips, enforce_sorted=False))
    summary = torch.cat([torch.stack([clip.mean(0) for clip in clips]), state[-1]], dim=1)
    torch.testing.assert_close(head(*pad(clips)), head.regressor(summary), atol=1e-5, rtol=0)


def test_the_bilstm_head_equals_torchs_packed_bidirectional_lstm_in_numbers_and_gradients():
    clips = make_clips([1, 40, 7, 75, 2])
    head = build_head("bilstm", {"hidden": 9, "layers": 3}, 12, 6).eval()
    oracle = nn.LSTM(12, 9, 3, bidirectional=True)
    for layer in range(3):
        set_weights(oracle, head.forwards[layer], f"_l{layer}")
        set_weights(oracle, head.backwards[layer], f"_l{layer}_reverse")
    _, (state, _) = oracle(nn.utils.rnn.pack_sequence(clips, enforce_sorted=False))
    expected = head.regressor(torch.cat([torch.stack([clip.mean(0) for clip in clips]), state[-2], state[-1]], dim=1))
    found = head(*pad(clips))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    found.square().sum().backward(inputs=list(head.parameters()))
    expected.square().sum().backward(inputs=list(oracle.parameters()))
    for layer in range(3):
        for part, suffix in ((head.forwards, ""), (head.backwards, "_reverse")):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                of_oracle = getattr(oracle, f"{name}_l{layer}{suffix}").grad
                torch.testing.assert_close(getattr(part[layer], f"{name}_l0").grad, of_oracle, atol=1e-5, rtol=1e-4)


def test_the_mlp_head_reads_numpys_mean_standard_deviation_and_maximum():
    clips = make_clips([2, 50])
    head = build_head("mlp", {"hidden": 8, "layers": 2}, 12, 4).eval()
    arrays = [clip.numpy().astype(np.float64) for clip in clips]
    summary = np.stack([np.concatenate([a.mean(0), a.std(0), a.max(0)]) for a in arrays])
    expected = head.regressor(head.layers(torch.from_numpy(summary.astype(np.float32))))
    torch.testing.assert_close(head(*pad(clips)), expected, atol=1e-5, rtol=1e-5)


def test_the_attention_head_pools_by_scipys_softmax():
    clips = make_clips([1, 50, 8])
    head = build_head("attention", {"heads": 3}, 12, 4).eval()
    queries = head.queries.weight.detach().numpy()
    summary = []
    for clip in (clip.numpy() for clip in clips):
        weights = scipy.special.softmax(clip @ queries.T / np.sqrt(12), axis=0)
        summary.append(np.concatenate([clip.mean(0), *(weights.T @ clip)]))
    expected = head.regressor(torch.from_numpy(np.stack(summary).astype(np.float32)))
    torch.testing.assert_close(head(*pad(clips)), expected, atol=1e-5, rtol=1e-5)


def test_attention_weights_sum_to_one_and_leave_padding_out():
    head = build_head("attention", {"heads": 2}, 12, 4)
    weights = head.weights(*pad(make_clips([3, 8])))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 2))
    assert (weights[0, 3:] == 0).all()


def test_a_tcn_block_equals_numpys_convolution():
    (clip,) = make_clips([20], dim=3)
    block = TcnBlock(3, kernel=5, dilation=4, dropout=0.0)
    with torch.no_grad():
        found = block(clip[None], torch.tensor([20]))[0]
    normal = (clip - clip.mean(1, keepdim=True)) / (clip.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    taps = np.zeros((3, 3, 17))
    taps[:, :, ::4] = block.conv.weight.detach().numpy()
    seen = [sum(np.correlate(normal[:, i].numpy(), taps[o, i], mode="full")[8:-8] for i in range(3)) for o in range(3)]
    seen = np.maximum(np.stack(seen, axis=1) + block.conv.bias.detach().numpy(), 0)
    expected = clip.numpy() + seen @ block.mix.weight.detach().numpy().T + block.mix.bias.detach().numpy()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_hierarchical_head_equals_a_loop_over_clips_and_segments():
    clips = make_clips([1, 4, 5, 23, 40])
    head = build_head("hierarchical", {"pool_frames": 4, "hidden": 9}, 12, 3).eval()
    expected = []
    for clip in clips:
        means = torch.stack([segment.mean(0) for segment in clip.split(4)])
        states, _ = head.lstm(means[None])
        expected.append(head.regressor(torch.cat([clip.mean(0), states[0, -1]])))
    torch.testing.assert_close(head(*pad(clips, 1e4)), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_transformer_head_equals_its_encoder_on_one_clip_at_a_time():
    clips = make_clips([1, 4, 5, 23, 40])
    head = build_head("transformer", {"pool_frames": 4, "hidden": 8}, 12, 3).eval()
    expected = []
    for clip in clips:
        projected = head.project(torch.stack([segment.mean(0) for segment in clip.split(4)]))
        angles = np.arange(len(projected))[:, None] / 10000 ** (np.arange(0, 8, 2) / 8)
        positions = np.empty((len(projected), 8), np.float32)
        positions[:, 0::2], positions[:, 1::2] = np.sin(angles), np.cos(angles)
        seen = head.encoder((projected + torch.from_numpy(positions))[None])[0]
        expected.append(head.regressor(torch.cat([clip.mean(0), seen.mean(0)])))
    torch.testing.assert_close(head(*pad(clips, 1e4)), torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_the_transformer_rounds_the_inputs_size_up_to_its_heads_and_refuses_a_size_that_does_not_divide():
    assert build_head("transformer", {"hidden": 0, "heads": 4}, 13, 2).project.out_features == 16
    with pytest.raises(TrainSettingsError, match=r"multiple of heads.*such as 12, got 10"):
        build_head("transformer", {"hidden": 10, "heads": 4}, 13, 2)


def test_the_sequence_head_gives_each_clip_the_mean_of_its_frames_and_zeros_behind_it():
    clips = make_clips([3, 9])
    head = build_head("sequence", {"hidden": 8, "output": "sigmoid"}, 12, 2).eval()
    batch = pad(clips, float("nan"))
    values = head.per_frame(*batch)
    assert values.shape == (2, 9, 2)
    assert (values[0, 3:] == 0).all()
    torch.testing.assert_close(head(*batch), torch.stack([values[0, :3].mean(0), values[1].mean(0)]))
    states, _ = head.lstm(clips[0][None])
    torch.testing.assert_close(values[0, :3], torch.sigmoid(head.linear(states))[0])


def test_the_timeline_of_the_sequence_head_never_looks_ahead():
    (clip,) = make_clips([20])
    head = build_head("sequence", {"hidden": 8}, 12, 2).eval()
    whole, part = head.per_frame(*pad([clip])), head.per_frame(*pad([clip[:7]]))
    torch.testing.assert_close(whole[:, :7], part)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lstmm", {}, "did you mean 'lstm'"),
        ("lstm", {"hiden": 3}, "did you mean 'hidden'"),
        ("lstm", {"dropout": 1.5}, "dropout must lie in"),
        ("lstm", {"layers": 0}, "layers must be a whole number, 1 or more"),
        ("lstm", {"output": "relu"}, "unknown output 'relu'"),
        ("mean", {"hidden": 3}, "unknown option of head 'mean'"),
        ("gru", {"hidden": 2.5}, "hidden must be a whole number, 0 or more, got 2.5"),
        ("gru", {"layers": True}, "layers must be a whole number, 1 or more, got True"),
        ("gru", {"global_vector": "no"}, "global_vector must be true or false"),
        ("mlp", {"output": "tan"}, "did you mean 'tanh'"),
        ("mlp", {"dropout": "half"}, "dropout must lie in"),
        ("tcn", {"kernel": 4}, "kernel must be odd"),
    ],
)
def test_a_wrong_head_or_option_is_named(name, options, message):
    with pytest.raises(TrainSettingsError, match=message):
        build_head(name, options, 12, 3)
