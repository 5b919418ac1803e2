"""What heads promise where rows are not valid, and where every row is predicted."""

import pytest
import torch

from tests.train_head.heads.test_every_head import (
    DIM,
    FILLERS,
    LENGTHS,
    SMALL,
    TARGETS,
    has,
    make_clips,
    pad,
    small_head,
)
from train_head.errors import TrainSettingsError
from train_head.heads import ENCODERS, HEADS, SUMMARY_ONLY, build_fused
from train_head.heads.fused import Rows
from train_head.heads.pooling import masked

BY_ROW = [name for name in HEADS if name not in SUMMARY_ONLY]


def row_head(name: str, seed: int = 0, **options):
    torch.manual_seed(seed)
    known = {key: value for key, value in (SMALL | options).items() if has(name, key)}
    return build_fused({"audio": (name, known)}, ("concat", {}), {"audio": DIM}, TARGETS, rows=True).eval()


def per_row(head, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """A reference row per row of the stream."""
    row = torch.arange(frames.shape[1]).expand(len(frames), -1)
    return head({"audio": Rows(frames, lengths, None, torch.where(row < lengths[:, None], row, -1))})


def some_valid(lengths: torch.Tensor, rows: int) -> torch.Tensor:
    mask = torch.rand(len(lengths), rows, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[:, 0] = True
    return mask


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("name", HEADS)
def test_what_rows_hold_that_are_not_valid_changes_no_value_and_no_gradient(name, filler):
    frames, lengths = pad(make_clips(LENGTHS))
    mask = some_valid(lengths, frames.shape[1])
    head = small_head(name).eval()
    expected = head(frames * mask.unsqueeze(-1), lengths, mask)
    changed = torch.where(mask.unsqueeze(-1), frames, filler).requires_grad_()
    found = head(changed, lengths, mask)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    found.square().sum().backward()
    assert (changed.grad[~mask] == 0).all()
    assert changed.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("name", ["mean", "mlp", "attention"])
def test_a_summary_over_valid_rows_is_that_of_the_clip_without_the_others(name):
    clips = make_clips(LENGTHS)
    frames, lengths = pad(clips)
    mask = some_valid(lengths, frames.shape[1])
    head = small_head(name).eval()
    kept = [clip[mask[i, : len(clip)]] for i, clip in enumerate(clips)]
    torch.testing.assert_close(head(frames, lengths, mask), head(*pad(kept)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_predicts_every_row_or_says_that_it_cannot(name):
    if name not in BY_ROW:
        with pytest.raises(TrainSettingsError, match=r"summarises a clip.*take one of lstm, gru"):
            row_head(name)
        return
    values = per_row(row_head(name), *pad(make_clips(LENGTHS)))
    assert values.shape == (len(LENGTHS), max(LENGTHS), TARGETS)
    behind = torch.stack([values[i, -1] for i, length in enumerate(LENGTHS) if length < max(LENGTHS)])
    assert (behind == behind[0]).all(), "what the head says where it has nothing"


@pytest.mark.parametrize("name", BY_ROW)
def test_values_of_rows_are_those_of_the_clip_alone(name):
    clips = make_clips(LENGTHS)
    head = row_head(name)
    together = per_row(head, *pad(clips, filler=1e30, extra=5))
    for i, clip in enumerate(clips):
        torch.testing.assert_close(together[i, : len(clip)], per_row(head, *pad([clip]))[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "kernel": 4}, {"kernel": 5, "layers": 2}])
def test_a_tcns_states_see_as_far_as_their_reach_and_no_farther(options):
    head = row_head("tcn", **({"layers": 3} | options))
    before, after = head.encoders["audio"].reach
    (clip,) = make_clips([80])
    row = 40
    frames = clip[None].clone().requires_grad_()
    per_row(head, frames, torch.tensor([80]))[0, row].square().sum().backward()
    seen = (frames.grad[0] != 0).any(dim=1).nonzero().flatten()
    assert seen.min() == row - before
    assert seen.max() == row + after


@pytest.mark.parametrize("name", ["gru", "lstm", "sequence"])
def test_recurrent_heads_in_one_direction_do_not_see_later_rows(name):
    head = row_head(name)
    (clip,) = make_clips([30])
    whole, part = per_row(head, *pad([clip])), per_row(head, *pad([clip[:12]]))
    torch.testing.assert_close(whole[0, :12], part[0], atol=1e-6, rtol=1e-5)


def test_every_head_has_its_encoder():
    assert list(ENCODERS) == list(HEADS)


@pytest.mark.parametrize("major", ["batch", "time"])
@pytest.mark.parametrize("filler", [0.0, -torch.inf])
def test_masked_rows_are_filled_whatever_stood_there_and_get_no_gradient(major, filler):
    frames = torch.randn(3, 5, 2)
    frames = frames if major == "batch" else frames.transpose(0, 1).contiguous().transpose(0, 1)
    mask = torch.rand(3, 5) > 0.4
    frames[~mask] = torch.nan
    frames.requires_grad_()
    found = masked(frames, mask, filler)
    assert torch.equal(found[mask], frames[mask])
    assert (found[~mask] == filler).all()
    found[mask].sum().backward()
    assert torch.equal(frames.grad, mask.unsqueeze(-1).float().expand(3, 5, 2))
    one, other = (masked(frames, shared, filler).nan_to_num() for shared in (mask[:1], mask[:1].expand(3, 5)))
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError):
        masked(frames, mask[:, :4], filler)
