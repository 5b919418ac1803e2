"""The trainer: protocol, run folder, exact resume."""

import json
import math
import os
import signal
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from warm_python import python

import emi
from cache import CacheWriter, Clip, Header, StaleCacheError
from train_head.data.gather import gather, open_caches
from train_head.data.labels import read_labels
from train_head.data.names import UNNAMED
from train_head.data.splits import Workspace, shuffled_batches
from train_head.errors import DivergedError, LabelError, RunFolderError, TrainSettingsError
from train_head.losses import LOSSES, Loss
from train_head.runs.load import load_head
from train_head.training.predictor import Predictor
from train_head.training.settings import TrainSettings, read_assignments, resolve_settings
from train_head.training.trainer import learning_rate

QUICK = {"hidden": 16, "epochs": 4, "lr": 3e-3, "precision": "fp32"}
EVERYTHING = {
    "standardise": True,
    "loss": "0.7*ccc + 0.3*mse",
    "weighting": "lds",
    "augment": {"time_masks": 1, "frame_dropout": 0.1, "noise": 0.1, "mixup": 0.2},
    "ema": 0.9,
    "dropout": 0.2,
}
"""Every part of a run that has a state of its own or draws numbers."""


MEASURED = {"seconds", "frames_per_second"}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def train(labelled: Path, out: Path, **settings):
    cache = labelled / "features.zarr"
    return emi.train_head(cache, labelled / "train.csv", labelled / "valid.csv", out, **(QUICK | settings))


def test_a_run_folder_holds_everything_the_contract_names(labelled, labelled_cache, tmp_path):
    result = train(labelled, tmp_path / "run", test=labelled / "valid.csv")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "config.toml",
        "metrics.jsonl",
        "best.safetensors",
        "last.pt",
        "predictions_valid.csv",
        "predictions_test.csv",
        "README.md",
        *(f"{name}.{kind}" for name in ("curves", "scatter_valid", "scatter_test") for kind in ("svg", "png")),
    }
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    best = max(records, key=lambda record: record["valid_mean_pearson"])
    assert result.best_epoch == best["epoch"]
    assert result.report.mean_pearson == pytest.approx(best["valid_mean_pearson"], abs=1e-12)


@pytest.mark.parametrize("more", [{"precision": "bf16"}, {"precision": "bf16", "ema": 0.5}])
def test_curves_table_and_predictions_are_of_one_precision(labelled, labelled_cache, tmp_path, undrawn, more):
    result = train(labelled, tmp_path / "run", epochs=2, **more)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kept = records[result.best_epoch - 1]
    assert kept["valid_mean_pearson"] == result.report.mean_pearson
    assert kept["valid_pearson"] == dict(zip(result.report.names, result.report.pearson, strict=True))
    store, labels = emi.open_cache(labelled_cache), read_labels(labelled / "valid.csv")
    alone = np.stack([load_head(tmp_path / "run").predict({UNNAMED: store[clip]}) for clip in labels.ids])
    found = read_labels(tmp_path / "run" / "predictions_valid.csv", check_range=False).values
    np.testing.assert_allclose(alone, found, atol=1e-5)


def test_two_validation_clips_choose_no_epoch_and_the_run_says_so(labelled, labelled_cache, tmp_path, undrawn):
    header, *rows = (labelled / "valid.csv").read_text().splitlines(keepends=True)
    (tmp_path / "two.csv").write_text("".join([header, *rows[:2]]))
    files = (labelled_cache, labelled / "train.csv", tmp_path / "two.csv")
    result = emi.train_head(*files, tmp_path / "run", **(QUICK | {"epochs": 2}))
    assert (result.best_epoch, result.report.mean_pearson) == (2, None)
    warning = "warning: only 2 clips: with fewer than 3, a correlation is 1 or -1 whatever was predicted"
    assert warning in result.report.table()
    card = (tmp_path / "run" / "README.md").read_text()
    assert warning in card
    assert "is kept, chosen by no clip" in card


def test_the_predictions_file_scores_what_the_run_reports(labelled, labelled_cache, tmp_path):
    from train_head.evaluation.metrics import evaluate
    from train_head.evaluation.scoring import read_pair

    result = train(labelled, tmp_path / "run")
    predicted, truth = read_pair(tmp_path / "run" / "predictions_valid.csv", labelled / "valid.csv")
    scored = evaluate(predicted, truth.values, truth.names)
    assert scored.mean_pearson == pytest.approx(result.report.mean_pearson, abs=1e-12)
    assert str(round(scored.mean_pearson, 3)) in (tmp_path / "run" / "README.md").read_text()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(labelled, labelled_cache, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(labelled, tmp_path / name, seed=seed, epochs=2)
    a, b, c = (load_file(tmp_path / name / "best.safetensors") for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


KILLED = """
import os, signal, sys, emi
from pathlib import Path
from train_head.runs import run_folder
saves, save = 0, run_folder.save_state
def save_and_die(folder, state):
    global saves
    saves += 1
    if {before} and saves == 3: os.kill(os.getpid(), signal.SIGKILL)
    save(folder, state)
    if not {before} and saves == 2: os.kill(os.getpid(), signal.SIGKILL)
run_folder.save_state = save_and_die
root = Path(sys.argv[1])
files = [root / name for name in ("features.zarr", "train.csv", "valid.csv")]
emi.train_head(*files, sys.argv[2], hidden=16, epochs=5, lr=3e-3, precision="fp32", **{more})
"""


@pytest.mark.parametrize(
    ("before", "more"), [pytest.param(True, {}, marks=pytest.mark.slow), (False, {}), (False, EVERYTHING)]
)
def test_a_killed_run_resumes_to_the_same_weights(labelled, labelled_cache, tmp_path, before, more):
    program = KILLED.format(before=before, more=more)
    killed = subprocess.run([python(), "-c", program, str(labelled), str(tmp_path / "killed")], check=False)
    assert killed.returncode == -signal.SIGKILL
    resumed = train(labelled, tmp_path / "killed", epochs=5, **more)
    whole = train(labelled, tmp_path / "whole", epochs=5, **more)
    assert (resumed.resumed_at, whole.resumed_at) == (2, 0)
    a, b = (torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("killed", "whole"))
    for part in ("predictor", "averaged") if more else ("predictor",):
        assert all(torch.equal(a[part][key], b[part][key]) for key in b[part])
    read = lambda name: (tmp_path / name / "predictions_valid.csv").read_bytes()  # noqa: E731
    assert read("killed") == read("whole")
    strip = lambda history: [{k: v for k, v in record.items() if k not in MEASURED} for record in history]  # noqa: E731
    assert strip(resumed.history) == strip(whole.history)


def test_a_finished_run_is_left_as_it_is(labelled, labelled_cache, tmp_path):
    first = train(labelled, tmp_path / "run")
    again = train(labelled, tmp_path / "run")
    assert again.resumed_at == len(again.history) == len(first.history)


def test_another_run_in_the_folder_is_refused_by_name(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"lr \(there 0.003, now 0.01\)"):
        train(labelled, tmp_path / "run", lr=0.01)


def test_changed_labels_are_another_run(labelled, labelled_cache, tmp_path):
    changed = tmp_path / "train.csv"
    changed.write_text((labelled / "train.csv").read_text())
    arguments = (labelled_cache, changed, labelled / "valid.csv", tmp_path / "run")
    emi.train_head(*arguments, **QUICK)
    changed.write_text("\n".join(changed.read_text().splitlines()[:-1]))
    with pytest.raises(RunFolderError, match=r"--train \(.*train.csv has other contents than it had\)"):
        emi.train_head(*arguments, **QUICK)


def test_a_foreign_folder_is_refused_and_untouched(labelled, labelled_cache, tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunFolderError, match="is no run folder"):
        train(labelled, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_config_of_a_run_repeats_it(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "a", dropout=0.2)
    config = tomllib.loads((tmp_path / "a" / "config.toml").read_text())
    assert config["lstm"]["dropout"] == 0.2
    cache, run = labelled / "features.zarr", tmp_path / "b"
    emi.train_head(cache, labelled / "train.csv", labelled / "valid.csv", run, config=tmp_path / "a" / "config.toml")
    a, b = (load_file(tmp_path / name / "best.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_early_stopping_waits_for_patience_epochs(labelled, labelled_cache, tmp_path):
    result = train(labelled, tmp_path / "run", epochs=60, patience=2, lr=0.3)
    assert len(result.history) == result.best_epoch + 2 < 60


def poison(monkeypatch, damage):
    """From the second batch of the first epoch on, the loss is damaged."""
    calls = 0

    def poisoned(predicted, target, weight):
        nonlocal calls
        calls += 1
        loss = (predicted - target).square().mean()
        return damage(loss) if calls == 2 else loss

    monkeypatch.setitem(LOSSES, "mse", Loss(poisoned))


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_weights(
    labelled, labelled_cache, tmp_path, monkeypatch
):
    poison(monkeypatch, lambda loss: loss * float("nan"))
    with pytest.raises(DivergedError, match=r"loss became nan in epoch 2, in the batch of clips \d+.*epoch 1$"):
        train(labelled, tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(labelled, labelled_cache, tmp_path, monkeypatch):
    poison(monkeypatch, lambda loss: loss + (loss - loss).sqrt())  # 0, with an infinite slope
    with pytest.raises(DivergedError, match=r"a gradient is not finite in epoch 2"):
        train(labelled, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_the_moving_average_is_what_is_saved_and_evaluated(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run", ema=0.99, epochs=1, batch_size=8)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    saved = load_file(tmp_path / "run" / "best.safetensors")
    assert all(torch.equal(saved[key], state["averaged"][f"module.{key}"]) for key in saved)
    assert not all(torch.equal(saved[key], state["predictor"][key]) for key in saved)


def test_standardisation_is_of_the_training_frames_and_travels_with_the_head(labelled, labelled_cache, tmp_path):
    train(labelled, tmp_path / "run", standardise=True, epochs=1)
    saved = load_file(tmp_path / "run" / "best.safetensors")
    store = emi.open_cache(labelled_cache)
    frames, _ = store.load(read_labels(labelled / "train.csv").ids)
    np.testing.assert_allclose(saved["standardise.mean"], frames.astype(np.float64).mean(0), rtol=1e-5, atol=1e-6)
    spread = frames.astype(np.float64).std(0)
    np.testing.assert_allclose(saved["standardise.scale"], np.where(spread > 0, spread, 1), rtol=1e-4)
    head = load_head(tmp_path / "run")
    predicted = read_labels(tmp_path / "run" / "predictions_valid.csv", check_range=False)
    for clip, row in zip(predicted.ids, predicted.values, strict=True):
        np.testing.assert_allclose(head.predict({UNNAMED: store[clip]}), row, atol=1e-5)


def test_a_two_part_loss_predicts_one_value_per_target(labelled, labelled_cache, tmp_path):
    result = train(labelled, tmp_path / "run", loss="zero_inflated", epochs=2)
    predicted = read_labels(tmp_path / "run" / "predictions_valid.csv", check_range=False)
    assert predicted.names == result.report.names


def test_labels_without_features_are_counted_and_named(labelled, labelled_cache, tmp_path):
    extra = tmp_path / "more.csv"
    extra.write_text((labelled / "train.csv").read_text() + "777,0,0\n778,0,0\n")
    with pytest.raises(LabelError, match=r"2 of the 30 clips .* \(first: 777, 778\).*--skip-missing"):
        emi.train_head(labelled_cache, extra, labelled / "valid.csv", tmp_path / "run", **QUICK)
    result = emi.train_head(
        labelled_cache, extra, labelled / "valid.csv", tmp_path / "run", skip_missing=True, **(QUICK | {"epochs": 1})
    )
    assert result.skipped == 2
    assert "28 of 30" in (tmp_path / "run" / "README.md").read_text()


def test_targets_must_be_the_same_in_all_splits(labelled, labelled_cache, tmp_path):
    other = tmp_path / "valid.csv"
    other.write_text("Filename,Joy,Sad\n28,0,0\n")
    with pytest.raises(LabelError, match=r"Joy, Sad.*Joy, Calm"):
        emi.train_head(labelled_cache, labelled / "train.csv", other, tmp_path / "run", **QUICK)


def write_cache(path: Path, ids: list[str], **fingerprint) -> Path:
    header = Header(fingerprint={"backbone": "x", "max_seconds": 12.0, "dtype": "float16"} | fingerprint, dim=4)
    with CacheWriter(path, header) as writer:
        for i, clip in enumerate(ids):
            writer.add(Clip(clip, np.full((3, 4), i, np.float32), None, None, 0.1))
    return path


def test_clips_may_be_spread_over_caches_of_one_kind(tmp_path):
    paths = [write_cache(tmp_path / "a.zarr", ["00001", "00003"]), write_cache(tmp_path / "b.h5", ["00002"])]
    (tmp_path / "l.csv").write_text("Filename,Joy\n3,0\n2,0\n1,0\n")
    split = gather({UNNAMED: open_caches(paths)}, {"train": read_labels(tmp_path / "l.csv")})["train"]
    assert [split.batch([i]).streams[UNNAMED].frames[0, 0, 0].item() for i in range(3)] == [1.0, 0.0, 0.0]


def test_caches_made_in_different_ways_do_not_mix(tmp_path):
    paths = [write_cache(tmp_path / "a.zarr", ["1"]), write_cache(tmp_path / "b.zarr", ["2"], max_seconds=6.0)]
    with pytest.raises(StaleCacheError, match=r"max_seconds \(stored 12.0, wanted 6.0\)"):
        open_caches(paths)


def test_a_batch_is_padded_with_zeros_behind_each_clip(labelled_cache, labelled):
    split = gather({UNNAMED: open_caches([labelled_cache])}, {"train": read_labels(labelled / "train.csv")})["train"]
    workspace = Workspace()
    split.batch([1, 2, 5, 9], workspace).streams[UNNAMED].frames.fill_(9.0)  # what a batch before left there
    batch = split.batch([3, 0, 7], workspace)
    frames, lengths = batch.streams[UNNAMED].frames, batch.streams[UNNAMED].lengths
    store = emi.open_cache(labelled_cache)
    for row, clip in enumerate(["00003", "00000", "00007"]):
        expected = store[clip].frames.astype(np.float32)
        np.testing.assert_array_equal(frames[row, : lengths[row]], expected)
        assert not frames[row, lengths[row] :].any()
    np.testing.assert_array_equal(batch.targets, split.labels.values[[3, 0, 7]])


def test_splits_share_one_array_and_a_part_of_one_shares_it_too(labelled_cache, labelled):
    labels = {name: read_labels(labelled / f"{name}.csv") for name in ("train", "valid")}
    splits = gather({UNNAMED: open_caches([labelled_cache])}, labels | {"again": labels["train"]})
    assert splits["train"].only.rows is splits["valid"].only.rows is splits["again"].only.rows
    store = emi.open_cache(labelled_cache)
    assert len(splits["train"].only.rows) == sum(len(store[i].frames) for part in labels.values() for i in part.ids)
    part = splits["train"].take([4, 1])
    assert part.labels.ids == (labels["train"].ids[4], labels["train"].ids[1])
    for clip, frames in zip(part.labels.ids, part.only.chunks(), strict=True):
        np.testing.assert_array_equal(frames, store[clip].frames)


def test_every_clip_is_drawn_once_an_epoch_among_changing_neighbours():
    lengths = torch.randint(1, 300, (1000,), generator=torch.Generator().manual_seed(0))
    epochs = [shuffled_batches(lengths, 32, torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    for batches in epochs:
        assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padding = sum(int(lengths[batch].max()) * len(batch) for batch in epochs[0]) / int(lengths.sum())
    assert padding < 1.2
    first, second = ({frozenset(batch) for batch in batches} for batches in epochs)
    assert not first & second


def test_the_learning_rate_rises_for_an_epoch_and_falls_to_zero_as_a_cosine():
    settings = TrainSettings(lr=1e-4, epochs=30)
    rates = [learning_rate(settings, step, 10) for step in range(300)]
    assert rates[9] == pytest.approx(1e-4)
    assert rates[0] == pytest.approx(1e-5)
    assert rates[10 + 145] == pytest.approx(0.5e-4, rel=1e-6)
    assert rates[299] == pytest.approx(1e-4 * 0.5 * (1 + math.cos(math.pi * 289 / 290)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate = 1", "unknown setting 'learning_rate'"),
        ("epoch = 3", "did you mean 'epochs'"),
        ("epochs = 2.5", "epochs must be a int"),
        ("lr = 'fast'", "lr must be a float"),
        ("lr = 0", "lr must be above 0"),
        ("loss = 'msee'", "did you mean 'mse'"),
        ("[lstm]\nhiden = 3", "did you mean 'hidden'"),
        ("[augment]\nmixupp = 0.1", "did you mean 'mixup'"),
        ("ema = 1.0", r"ema must lie in \[0, 1\)"),
        ("standardise = 1", "standardise must be a bool"),
        ("precision = 'bf61'", "did you mean 'bf16'"),
        ("lr = ", "not valid TOML"),
    ],
)
def test_a_wrong_settings_file_is_an_error_that_helps(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(TrainSettingsError, match=message):
        resolve_settings(tmp_path / "c.toml")


def test_arguments_override_the_file_and_the_file_the_defaults(tmp_path):
    (tmp_path / "c.toml").write_text("lr = 0.5\nepochs = 7\n[lstm]\nhidden = 9\nlayers = 3\n")
    settings = resolve_settings(tmp_path / "c.toml", lr=0.25, hidden=11, seed=None)
    assert (settings.lr, settings.epochs, settings.seed) == (0.25, 7, 0)
    assert (settings.head_options["hidden"], settings.head_options["layers"]) == (11, 3)


@pytest.mark.slow
def test_the_papers_settings_reach_half_on_real_speech(ravdess, tmp_path):
    emi.extract(ravdess / "audio", tmp_path / "r.zarr")
    result = emi.train_head(
        tmp_path / "r.zarr", ravdess / "train_split.csv", ravdess / "valid_split.csv", tmp_path / "run"
    )
    assert result.report.mean_pearson >= 0.5
    assert os.environ["EMI_RAVDESS"]


def test_settings_can_be_given_as_assignments():
    given = ["mixup=0.2", "head = attention", 'loss="0.7*ccc + 0.3*mse"', "heads=2", "standardise=true"]
    settings = resolve_settings(**read_assignments(given))
    assert (settings.head, settings.head_options["heads"], settings.standardise) == ("attention", 2, True)
    assert settings.augment["mixup"] == 0.2
    with pytest.raises(TrainSettingsError, match="expected KEY=VALUE"):
        read_assignments(["mixup"])


def test_a_two_part_timeline_has_one_column_per_target():
    settings = resolve_settings(head="sequence", hidden=4, layers=1, loss="zero_inflated")
    predictor = Predictor(settings, {UNNAMED: 3}, 2).eval()
    timeline = predictor.per_frame(torch.randn(2, 5, 3), torch.tensor([5, 3]))
    assert timeline.shape == (2, 5, 2)
    assert not timeline[1, 3:].any()
