"""The weight-normed blocks of the tcn: against independent modules, and what their options promise."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.train_head.heads.test_every_head import LENGTHS, TARGETS, make_clips, pad
from tests.train_head.heads.test_rows import per_row, row_head
from train_head.errors import TrainSettingsError
from train_head.heads import build_head
from train_head.heads.tcn import WeightNormBlock

PAPER = {"block": "weightnorm", "causal": True, "kernel": 5, "layers": 4}


class Block(nn.Module):
    """As users write it: padding on both sides and the surplus cut off behind."""

    def __init__(self, dim, hidden, kernel, dilation, causal):
        super().__init__()
        self.cut = (kernel - 1) * dilation if causal else 0
        padding = (kernel - 1) * dilation // (1 if causal else 2)
        self.one = nn.Conv1d(dim, hidden, kernel, padding=padding, dilation=dilation)
        self.two = nn.Conv1d(hidden, hidden, kernel, padding=padding, dilation=dilation)
        self.down = nn.Conv1d(dim, hidden, 1) if dim != hidden else nn.Identity()

    def forward(self, channels):
        found = channels
        for conv in (self.one, self.two):
            found = functional.leaky_relu(conv(found)[..., : channels.shape[2]] if self.cut else conv(found))
        return functional.leaky_relu(found + self.down(channels))


def normalised(conv):
    """g v / |v|, per output channel."""
    size, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
    return size * direction / direction.flatten(1).norm(dim=1)[:, None, None]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dim", [7, 6])
def test_a_weight_normed_block_equals_one_written_by_hand(dim, causal):
    torch.manual_seed(0)
    block, oracle = WeightNormBlock(dim, 6, [5], 4, 0.0, causal=causal), Block(dim, 6, 5, 4, causal)
    with torch.no_grad():
        for own, conv in ((block.first[0].conv, oracle.one), (block.second[0].conv, oracle.two)):
            own.parametrizations.weight.original0.mul_(1.7)
            conv.weight.copy_(normalised(own))
            conv.bias.copy_(own.bias)
        if dim != 6:
            oracle.down.weight.copy_(block.residual.weight[..., None])
            oracle.down.bias.copy_(block.residual.bias)
    rows = torch.randn(3, 40, dim)
    found = block(rows, torch.ones(3, 40, dtype=torch.bool))
    torch.testing.assert_close(found, oracle(rows.transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_branches_are_averaged_and_have_kernels_of_their_own():
    torch.manual_seed(0)
    block = WeightNormBlock(6, 6, [3, 5, 7], 2, 0.0, causal=True)
    rows, inside = torch.randn(2, 30, 6), torch.ones(2, 30, dtype=torch.bool)
    assert [conv.conv.kernel_size for conv in block.second] == [(3,), (5,), (7,)]
    parts = []
    for first, second in zip(block.first, block.second, strict=True):
        states = functional.leaky_relu(first(rows, inside))
        parts.append(functional.leaky_relu(second(states, inside)))
    expected = functional.leaky_relu(rows + (parts[0] + parts[1] + parts[2]) / 3)
    torch.testing.assert_close(block(rows, inside), expected, atol=1e-6, rtol=1e-5)


def test_the_published_network_sees_121_rows():
    assert build_head("tcn", PAPER, 512, 2).encoder.reach == (120, 0)
    assert build_head("tcn", PAPER | {"causal": False}, 512, 2).encoder.reach == (60, 60)
    assert build_head("tcn", PAPER | {"kernel": 3, "branches": 3}, 512, 2).encoder.reach == (180, 0)


@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "kernel": 4}, {"kernel": 5}, {"branches": 2}])
def test_states_see_as_far_as_their_reach_and_no_farther(options):
    head = row_head("tcn", **({"block": "weightnorm", "layers": 2} | options))
    before, after = head.encoders["audio"].reach
    (clip,) = make_clips([80])
    frames = clip[None].clone().requires_grad_()
    per_row(head, frames, torch.tensor([80]))[0, 40].square().sum().backward()
    seen = (frames.grad[0] != 0).any(dim=1).nonzero().flatten()
    assert (int(seen.min()), int(seen.max())) == (40 - before, 40 + after)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_neighbours_and_rows_that_are_not_valid_never_change_a_clip(causal):
    clips = make_clips(LENGTHS)
    head = row_head("tcn", block="weightnorm", layers=2, causal=causal, branches=2)
    together = per_row(head, *pad(clips, filler=float("nan"), extra=5))
    for i, clip in enumerate(clips):
        torch.testing.assert_close(together[i, : len(clip)], per_row(head, *pad([clip]))[0], atol=1e-5, rtol=1e-5)
    summary = build_head(
        "tcn", {"block": "weightnorm", "hidden": 8, "causal": causal}, clips[0].shape[1], TARGETS
    ).eval()
    frames, lengths = pad(clips)
    valid = torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(1)) < 0.6
    valid[:, 0] = True
    zeros = torch.where(valid.unsqueeze(-1), frames, 0.0)
    other = torch.where(valid.unsqueeze(-1), frames, float("nan"))
    torch.testing.assert_close(summary(other, lengths, valid), summary(zeros, lengths, valid))


def test_gradients_reach_every_parameter_and_stay_finite():
    head = build_head("tcn", {"block": "weightnorm", "hidden": 8, "branches": 2}, 12, TARGETS).train()
    head(*pad(make_clips(LENGTHS))).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "weigthnorm"}, "unknown block 'weigthnorm'; did you mean 'weightnorm'"),
        ({"branches": 2}, 'branches go with block = "weightnorm"'),
        ({"block": "weightnorm", "branches": 0}, "branches must be a whole number, 1 or more"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(TrainSettingsError, match=message):
        build_head("tcn", options, 12, TARGETS)
