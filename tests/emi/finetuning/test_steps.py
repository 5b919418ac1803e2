"""Memory settings change no gradient, and what learns is what the settings say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emi.finetuning.audio import waveform
from emi.finetuning.depth import Depth
from emi.finetuning.frozen import FrozenOutputs
from emi.finetuning.gradients import Gradients, Piece, cut
from emi.finetuning.media import DecodedMedia, gather_media
from emi.finetuning.modalities import WaveformAugment
from emi.finetuning.processes import Processes
from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.start import on_this_machine
from extract.backbones import Regularisation, identify, load_trainable
from train_head.data.names import UNNAMED
from train_head.data.streams import Rows
from train_head.losses import build_objective
from train_head.runs.inputs import LabelFiles


@pytest.fixture
def start(labelled, checkpoint, audio, tmp_path):
    """A trainer before its first step."""

    def start(**settings):
        both = {
            "hidden": 8,
            "batch_size": 28,
            "precision": "fp32",
            "device": "cpu",
            "backbone_dropout": 0.0,
            "dropout": 0.0,
        }
        resolved, tuning = resolve(None, **both | settings)
        identity = identify(str(checkpoint))
        source = DecodedMedia(
            root=labelled / "audio",
            identity=identity,
            tuning=tuning,
            precision="fp32",
            processes=Processes("cpu"),
        )
        inputs = gather_media(source, LabelFiles.named(labelled / "train.csv", labelled / "valid.csv"), audio)
        return inputs.source.make_loop(on_this_machine(resolved, identity), inputs.splits["train"], None, tmp_path)

    return start


def gradients(trainer):
    """Of one step over all clips."""
    seen = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
    )
    trainer.run_epoch(1)
    return seen


WHOLE = {}


@pytest.fixture
def whole_batch(start):
    """The gradients of a loss, computed in one piece; once for all tests of the module."""

    def whole_batch(loss):
        if loss not in WHOLE:
            WHOLE[loss] = gradients(start(loss=loss, freeze="none", batch_seconds=100.0))
        return WHOLE[loss]

    return whole_batch


@pytest.mark.parametrize("loss", ["mse", "0.7*ccc + 0.3*pearson", "balanced_mse", "zero_inflated", "focal_r"])
@pytest.mark.parametrize(
    "change", [{"batch_seconds": 3.0}, {"checkpointing": True}, {"batch_seconds": 1.0, "checkpointing": True}]
)
def test_memory_settings_leave_the_gradients(start, whole_batch, loss, change):
    whole = whole_batch(loss)
    pieces = gradients(start(loss=loss, freeze="none", **{"batch_seconds": 100.0} | change))
    assert whole.keys() == pieces.keys()
    assert any("feature_extractor" in name for name in whole)
    largest = max(gradient.abs().max() for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=2e-3, atol=2e-5 * float(largest))


@pytest.mark.parametrize("loss", ["mse", "0.3*mae + focal_r", "ccc + balanced_mse", "zero_inflated"])
def test_missing_labels_count_in_no_piece(start, loss):
    """All but one label of a target is missing, and every label of some clips."""

    def missing(seconds):
        trainer = start(loss=loss, batch_seconds=seconds)
        trainer.train.targets[1:, 1] = torch.nan
        trainer.train.targets[::3, 0] = torch.nan
        return gradients(trainer)

    whole, pieces = missing(100.0), missing(2.0)
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    assert 0 < largest < float("inf")
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=2e-3, atol=2e-5 * largest)


def test_processes_share_a_batch_by_the_labels_that_are_there():
    """Two of them, one with a piece that repeats another's and does not count; their gradients are averaged."""
    targets, inputs = torch.rand(5, 2), torch.randn(5, 3)
    targets[0] = targets[2, 0] = targets[3, 1] = torch.nan
    module, objective = torch.nn.Linear(3, 2), build_objective("mse + 0.5*mae", "none", targets)
    settings = resolve(None, loss="mse + 0.5*mae")[0]
    processes = SimpleNamespace(count=2, sum=lambda value: value)
    shares = (
        [Piece((0, 1), (0, 1), 0), Piece((4,), (4,), 2)],
        [Piece((2, 3), (2, 3), 1), Piece((4,), (4,), 2, counts=False)],
    )
    total = 0.0
    for mine in shares:
        step = Gradients(settings, objective, torch.GradScaler("cpu", enabled=False), processes)
        total += step(module, mine, lambda piece: module(inputs[list(piece.places)]), targets)
    loss = objective(module(inputs), targets)
    assert total == pytest.approx(loss.item())
    for parameter, slope in zip(module.parameters(), torch.autograd.grad(loss, module.parameters()), strict=True):
        torch.testing.assert_close(parameter.grad / 2, slope)


def test_weighted_labels_are_weighted_over_the_whole_batch(start):
    whole, pieces = (gradients(start(weighting="lds", batch_seconds=s)) for s in (100.0, 3.0))
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=2e-3, atol=1e-6)


def test_the_gradient_is_that_of_the_loss_of_the_whole_batch(start, tiny, checkpoint, labelled):
    """The oracle: transformers on one clip at a time, one graph, the same head."""
    trainer = start(freeze="none", loss="ccc", batch_seconds=4.0)
    library, vad = tiny.save_audeering(checkpoint)
    head = trainer.model.predictor
    from extract.audio.media import decode

    outputs = []
    for name in trainer.train.labels.ids:
        samples = decode(labelled / "audio" / f"{name}.wav").samples
        samples = torch.from_numpy((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7))
        frames = library(samples.unsqueeze(0)).last_hidden_state
        frames = torch.cat([frames, vad(frames)], dim=2)
        outputs.append(head.outputs({UNNAMED: Rows(frames, torch.tensor([frames.shape[1]]))}))
    loss = build_objective("ccc", "none", trainer.train.targets)(torch.cat(outputs), trainer.train.targets)
    names = [name for name, _ in library.named_parameters()]
    slopes = torch.autograd.grad(loss, list(library.parameters()), allow_unused=True)
    expected = {name: slope for name, slope in zip(names, slopes, strict=True) if slope is not None}
    found = gradients(trainer)
    for name, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[f"backbone.encoder.{name}"], gradient, rtol=5e-3, atol=1e-4 * scale + 1e-7)


@pytest.fixture
def backbone(checkpoint):
    return load_trainable(identify(str(checkpoint)), torch.device("cpu"), "fp32", Regularisation())


def learning(backbone, depth, epoch):
    depth.arrange(epoch)
    return [s.name for s in depth.stages if any(p.requires_grad for m in s.modules for p in m.parameters())]


@pytest.mark.parametrize(
    ("freeze", "frozen", "first"),
    [
        ("none", 0, "cnn"),
        ("cnn", 1, "projection"),
        ("layers:0", 2, "layer 1"),
        ("layers:10", 12, "layer 11"),
        ("backbone", 15, None),
    ],
)
def test_what_is_frozen_has_neither_gradients_nor_dropout(backbone, freeze, frozen, first):
    depth = Depth(backbone, FinetuneSettings(freeze=freeze))
    found = learning(backbone, depth, 1)
    assert depth.never == frozen
    assert (found[0] if found else None) == first
    for i, stage in enumerate(depth.stages):
        assert all(module.training == (i >= frozen) for part in stage.modules for module in part.modules())
    named = sum(p.numel() for group in depth.groups(0.1) for p in group["params"])
    assert named == sum(p.numel() for p in backbone.parameters() if p.requires_grad)


def test_stages_thaw_from_the_top(backbone):
    depth = Depth(backbone, FinetuneSettings(freeze="layers:9", unfreeze_every=2))
    found = [learning(backbone, depth, epoch) for epoch in (1, 2, 3, 5, 7, 9, 30)]
    assert found == [
        [],
        [],
        ["output"],
        ["layer 12", "output"],
        ["layer 11", "layer 12", "output"],
        ["layer 10", "layer 11", "layer 12", "output"],
        ["layer 10", "layer 11", "layer 12", "output"],
    ]


def test_learning_rates_fall_with_depth_and_vectors_are_not_decayed(backbone):
    depth = Depth(backbone, FinetuneSettings(freeze="layers:11", backbone_lr=1e-3, layer_decay=0.5))
    groups = depth.groups(0.1)
    assert [(group["peak"], group["weight_decay"]) for group in groups] == [
        (5e-4, 0.1),
        (5e-4, 0),
        (1e-3, 0.1),
        (1e-3, 0),
    ]
    assert all((p.ndim > 1) == (group["weight_decay"] > 0) for group in groups for p in group["params"])


def test_pieces_hold_every_clip_once_and_processes_meet_as_often():
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, processes = int(rng.integers(1, 40)), int(rng.integers(1, 5))
        rows = rng.permutation(1000)[:count].tolist()
        samples = rng.integers(1, 200_000, count).tolist()
        spread = cut(rows, samples, float(16_000 * rng.uniform(0.1, 60)), processes)
        assert len(spread) == processes
        assert len({len(mine) for mine in spread}) == 1
        pieces = [piece for mine in spread for piece in mine if piece.counts]
        assert sorted(row for piece in pieces for row in piece.rows) == sorted(rows)
        assert all(rows[at] == row for piece in pieces for row, at in zip(piece.rows, piece.places, strict=True))


@pytest.mark.parametrize("settings", [{"noise_snr": 10.0}, {"gain_db": 6.0}, {"speed": 0.1}])
def test_waveforms_change_as_asked_and_repeat_with_the_seed(settings):
    augment = WaveformAugment(FinetuneSettings(**settings))
    samples = torch.sin(torch.arange(16_000) / 20)
    draws = [augment(samples, torch.Generator().manual_seed(seed)) for seed in range(30)]
    again = [augment(samples, torch.Generator().manual_seed(seed)) for seed in range(30)]
    assert all(torch.equal(a, b) for a, b in zip(draws, again, strict=True))
    if "speed" in settings:
        assert {len(draw) for draw in draws} == {16_000, 17_778, 14_546}  # 16,000 / 0.9 and / 1.1, rounded up
    elif "gain_db" in settings:
        gains = torch.tensor([20 * torch.log10(draw.norm() / samples.norm()) for draw in draws])
        assert gains.abs().max() <= 6
        assert gains.min() < -3 < 3 < gains.max()
    else:
        snr = [20 * torch.log10(samples.norm() / (draw - samples).norm()) for draw in draws]
        assert 9 < min(snr) < 15 < 25 < max(snr) < 31


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
def test_spec_augment_leaves_clips_whole_that_are_shorter_than_a_span(tiny, tmp_path, kind):
    """Also where clips of one length each go through the library, as in models that normalise over time."""
    tiny.model(kind).save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    backbone = load_trainable(
        identify(str(tmp_path)), torch.device("cpu"), "fp32", Regularisation(dropout=0.0, spec_augment=True)
    )
    clips = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16_000, 2400)]
    whole = backbone(clips).frames.split(list(backbone(clips).lengths))
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # transformers draws from it
    masked = backbone.train()(clips)
    long, short = masked.frames.split(list(masked.lengths))
    assert not torch.allclose(long, whole[0], atol=1e-3)
    torch.testing.assert_close(short, whole[1], rtol=0, atol=1e-5)


def test_a_lack_of_memory_says_what_helps(start, monkeypatch):
    from emi.finetuning.memory import FinetuneMemoryError

    trainer = start(batch_seconds=40.0)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.model.backbone, "above", full)
    with pytest.raises(
        FinetuneMemoryError, match=r"no memory for 40 s .*--batch-seconds 20 takes 50 %.*--checkpointing"
    ):
        trainer.run_epoch(1)


def test_a_lack_of_memory_in_several_processes_says_that_they_can_split_the_weights(start):
    from emi.finetuning.memory import FinetuneMemoryError

    trainer = start()
    trainer.processes.count = 2
    with pytest.raises(FinetuneMemoryError, match=r"--fsdp splits weights"), trainer._advised():
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_waveform_of_the_map_is_a_copy():
    samples = torch.zeros(10)
    waveform(samples, 2, 3).add_(1)
    assert not samples.any()


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["wav2vec2 layer", "wav2vec2 group", "hubert layer", "hubert group", "wavlm layer"])
def test_below_and_above_make_the_whole(tiny, tmp_path, kind, stages):
    """Of clips in other company below than above, some shorter than one frame."""
    name, norm = kind.split()
    tiny.model(name, **(tiny.layer_norm if norm == "layer" else {})).save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    identity = identify(str(tmp_path))
    backbone = load_trainable(identity, torch.device("cpu"), "fp32", Regularisation(dropout=0.0, layerdrop=0.5))
    stages = backbone.remembers(stages)
    assert stages == 1 or name != "wavlm"
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(n, generator=generator) for n in (9000, 16_000, 300, 9000, 4000)]
    samples = [len(clip) for clip in clips]
    with torch.no_grad():
        whole = backbone(clips)
        parts = [backbone.below(clips[:2], stages), backbone.below(clips[2:], stages)]
        again = backbone.above([*parts[0], *parts[1]], samples, stages)
        torch.testing.assert_close(again.frames, whole.frames, rtol=0, atol=2e-5)
        assert list(again.lengths) == list(whole.lengths)
        backbone.train()  # what is below is the same in training, and nothing of the model is left replaced
        torch.testing.assert_close(backbone.below(clips, stages)[1], parts[0][1], rtol=0, atol=2e-5)
        assert all(part.training for part in backbone.modules())
        torch.testing.assert_close(backbone.eval()(clips).frames, whole.frames, rtol=0, atol=0)


@pytest.mark.parametrize("freeze", ["cnn", "layers:5", "backbone"])
def test_remembering_what_is_frozen_changes_no_gradient(start, freeze):
    settings = {"freeze": freeze, "loss": "ccc", "batch_seconds": 3.0}
    trainer = start(**settings)
    trainer.restore()  # from here on outputs are kept
    once = gradients(trainer)
    again = gradients(start(remember=False, **settings))
    assert once.keys() == again.keys()
    for name, gradient in again.items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("home", ["here", "on a machine that this one does not see"])
def test_each_clip_goes_through_the_frozen_stages_once(start, home, tmp_path, monkeypatch):
    trainer = start(freeze="layers:5", epochs=3)
    if home != "here":
        trainer._place = tmp_path / "own" / "run"
        monkeypatch.setattr(trainer.processes, "from_first", lambda value: (tmp_path / "unseen" / "run", value[1]))
    trainer.restore()
    seen = []
    below = trainer.model.backbone.below
    trainer.model.backbone.below = lambda clips, stages: (seen.append(len(clips)), below(clips, stages))[1]
    for epoch in (1, 2, 3):
        trainer.run_epoch(epoch)
    assert sum(seen) == len(trainer.train)


def test_a_full_disk_frees_what_was_kept_and_training_continues(start, monkeypatch):
    trainer = start(freeze="layers:5", epochs=1)
    trainer.restore()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FrozenOutputs, "put", full)
    trainer.run_epoch(1)
    assert not list(trainer.folder.glob("frozen*"))


def test_what_an_earlier_version_kept_is_deleted_in_the_end(tune, tmp_path):
    tune(tmp_path / "ft", "silero", epochs=1)
    (tmp_path / "ft" / "frozen-0.bin").write_bytes(bytes(10))
    tune(tmp_path / "ft", "silero", epochs=1)
    assert not list((tmp_path / "ft").glob("frozen*"))
