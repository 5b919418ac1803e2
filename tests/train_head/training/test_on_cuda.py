"""What training a head does on a GPU: as far as a CPU can show it, and on a GPU where there is one."""

import numpy as np
import pytest
import torch
from torch import nn

import emi
from train_head.data.labels import Labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Placer, Split
from train_head.data.streams import Stream
from train_head.heads import recurrent
from train_head.heads.recurrent import cudnn_states
from train_head.training.loop import choose_kernels
from train_head.training.settings import TrainSettings
from train_head.training.trainer import Trainer


def split(frames, starts, lengths):
    ids = tuple(map(str, range(len(starts))))
    values = np.zeros((len(starts), 1), np.float32)
    stream = Stream(UNNAMED, frames, torch.tensor(starts), torch.tensor(lengths), 0.04)
    return Split(Labels("labels.csv", ids, ids, ("Joy",), values), {UNNAMED: stream}, torch.from_numpy(values))


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bfloat16_of_a_gpu_that_multiplies_it_and_never_what_torch_emulates(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    settings = TrainSettings().on_this_machine()
    assert (settings.device, settings.precision) == ("cuda", precision)


def test_splits_that_share_their_frames_share_one_copy_of_them_on_a_device():
    array = np.zeros((8, 4), np.float16)
    train, valid = split(torch.from_numpy(array), [0, 3], [3, 2]), split(torch.from_numpy(array), [5], [3])
    placed = Placer(torch.device("meta"))
    there = [placed(part) for part in (train, valid, train)]
    assert there[0].only.rows is there[1].only.rows is there[2].only.rows
    tensors = [t for part in there for t in (part.only.rows, part.only.starts, part.targets)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert placed(there[0]) is there[0]
    assert placed(split(torch.zeros(8, 4), [0], [8])).only.rows is not there[0].only.rows
    assert Placer(torch.device("cpu"))(train) is train


def test_float32_on_a_gpu_rounds_nothing_and_attention_needs_no_plan_per_shape(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        choose_kernels(TrainSettings(device="cpu", precision="bf16"))
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
        choose_kernels(TrainSettings(device="cuda", precision="fp32"))
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_beside_bfloat16_a_recurrent_layer_runs_in_float32_where_autocast_would_take_float16(monkeypatch, kind):
    torch.manual_seed(0)
    rnn, frames = kind(6, 5, 2, batch_first=True), torch.randn(3, 7, 6).bfloat16()
    monkeypatch.setattr(recurrent, "_would_be_float16", lambda _: True)
    with torch.autocast("cpu", torch.bfloat16):
        found = cudnn_states(rnn, frames)
    assert found.dtype == torch.float32
    assert torch.equal(found, rnn(frames.float())[0])


@pytest.mark.parametrize(
    ("device", "enabled", "dtype", "wrong"),
    [
        ("meta", True, torch.bfloat16, True),
        ("meta", True, torch.float16, False),
        ("meta", False, torch.bfloat16, False),
        ("cpu", True, torch.bfloat16, False),
    ],
)
def test_only_bfloat16_on_a_gpu_is_what_autocast_takes_for_float16(monkeypatch, device, enabled, dtype, wrong):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: enabled)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda _: dtype)
    assert recurrent._would_be_float16(torch.zeros(1, device=device)) == wrong


@pytest.mark.gpu
@pytest.mark.parametrize("head", ["lstm", "gru", "transformer"])
def test_a_head_learns_on_a_gpu_and_resumes_where_it_was(gpu, labelled, labelled_cache, tmp_path, monkeypatch, head):
    files = (labelled_cache, labelled / "train.csv", labelled / "valid.csv")
    settings = {"head": head, "device": "cuda", "epochs": 5, "lr": 1e-3, "ema": 0.9, "hidden": 32, "dropout": 0.3}
    settings |= {"batch_size": 7, "standardise": True}
    whole = emi.train_head(*files, tmp_path / "whole", **settings)
    losses = [record["train_loss"] for record in whole.history]
    assert losses[-1] < losses[0]
    original = Trainer.run_epoch

    def stops(self, number):
        if number == 3:
            raise KeyboardInterrupt
        return original(self, number)

    monkeypatch.setattr(Trainer, "run_epoch", stops)
    with pytest.raises(KeyboardInterrupt):
        emi.train_head(*files, tmp_path / "part", **settings)
    monkeypatch.undo()
    part = emi.train_head(*files, tmp_path / "part", **settings)
    assert part.resumed_at == 2
    assert [record["train_loss"] for record in part.history] == pytest.approx(losses, rel=1e-3)


@pytest.mark.gpu
def test_a_bfloat16_lstm_on_a_gpu_has_the_gradients_of_float32(gpu):
    torch.manual_seed(0)
    lstm, frames = nn.LSTM(64, 48, 2, batch_first=True).to(gpu), torch.randn(4, 50, 64, device=gpu)
    wanted = torch.autograd.grad(1e-6 * lstm(frames)[0].sum(), lstm.parameters())  # lost in float16
    with torch.autocast("cuda", torch.bfloat16):
        states = recurrent.lstm_states(lstm, frames)
    assert states.dtype == torch.float32
    for ours, theirs in zip(torch.autograd.grad(1e-6 * states.sum(), lstm.parameters()), wanted, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
