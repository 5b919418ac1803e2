"""The model card: its numbers are those of the run, its pictures are there, and it says what it must."""

import re
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import emi
from cache.licences import Licence
from train_head.data.labels import read_labels
from train_head.evaluation.intervals import bootstrap
from train_head.evaluation.metrics import evaluate
from train_head.reports.card import departures, front_matter, model_card
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.train import train_run
from train_head.training.settings import TrainSettings, resolve_settings

QUICK = {"hidden": 8, "epochs": 2, "lr": 3e-3, "precision": "fp32", "seed": 5}


@pytest.fixture(scope="module")
def run(labelled, labelled_cache, tmp_path_factory):
    """Settings, inputs and result of a short run with a test split."""
    files = {"train": labelled / "train.csv", "valid": labelled / "valid.csv", "test": labelled / "train.csv"}
    inputs = gather_inputs(labelled_cache, LabelFiles(files=files))
    settings = resolve_settings(**QUICK)
    result = train_run(inputs, tmp_path_factory.mktemp("card") / "run", settings)
    return settings.on_this_machine(), inputs, result


@pytest.fixture
def card(run):
    return (run[2].folder / "README.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    """First cell to the others, of the last table in which it stands."""
    cells = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_the_validation_table_holds_what_scipy_and_numpy_find(labelled, run, card):
    predicted = read_labels(run[2].folder / "predictions_valid.csv", check_range=False).values
    target = read_labels(labelled / "valid.csv").values
    found = rows(card.split("## Validation")[1].split("## Test")[0])
    for k, name in enumerate(("Joy", "Calm")):
        r, interval, ccc, mae = found[name]
        assert float(r) == pytest.approx(scipy.stats.pearsonr(predicted[:, k], target[:, k]).statistic, abs=5.1e-4)
        (a, c), (_, b) = np.cov(predicted[:, k], target[:, k], bias=True)
        distance = predicted[:, k].mean() - target[:, k].mean()
        assert float(ccc) == pytest.approx(2 * c / (a + b + distance**2), abs=5.1e-4)  # Lin 1989
        assert float(mae) == pytest.approx(np.abs(predicted[:, k] - target[:, k]).mean(), abs=5.1e-4)
        low, high = map(float, interval.split(" to "))
        assert -1 <= low <= float(r) <= high <= 1
    assert found["**mean over targets**"][0] == f"{run[2].report.mean_pearson:.3f}"


def test_the_intervals_are_those_of_the_bootstrap(labelled, run, card):
    predicted = read_labels(run[2].folder / "predictions_test.csv", check_range=False).values
    wanted = bootstrap(predicted, read_labels(labelled / "train.csv").values, ("Joy", "Calm"))
    found = rows(card.split("## Test")[1])
    assert found["Joy"][1] == f"{wanted.low[0]:.3f} to {wanted.high[0]:.3f}"
    assert found["**mean over targets**"][1] == f"{wanted.mean_low:.3f} to {wanted.mean_high:.3f}"


def test_constant_predictions_stand_under_the_figures(labelled, run, card):
    train, valid = (read_labels(labelled / f"{name}.csv").values.astype(float) for name in ("train", "valid"))
    found = rows(card.split("## Validation")[1].split("## Test")[0])
    wanted = np.abs(train.mean(0) - valid).mean()
    assert found["mean of the training labels"] == ["undefined", "", "undefined", f"{wanted:.3f}"]
    assert found["all zeros"][-1] == f"{valid.mean():.3f}"


def test_missing_labels_are_no_zeros_and_the_intervals_of_few_groups_are_warned_of(labelled, run):
    settings, inputs, result = run
    labels = inputs.splits["train"].labels
    values = np.where(np.arange(28)[:, None] < 14, np.nan, 0.0)
    train = replace(inputs.splits["train"], labels=replace(labels, values=values))
    inputs = replace(inputs, splits=inputs.splits | {"train": train})
    valid = read_labels(labelled / "valid.csv")
    intervals = bootstrap(valid.values, valid.values, valid.names, ["a", "b", "c"] * 4, resamples=20)
    text = model_card(settings, inputs, result, {"valid": intervals})
    assert "100 % of the training labels are 0" in text
    assert "- warning: only 3 groups: the bootstrap intervals of fewer than 10 are too narrow" in text


def test_the_hub_reads_licence_tags_and_metrics_of_the_card(run):
    data = ModelCard.load(run[2].folder / "README.md").data
    assert data.license == "mit"
    assert "lstm" in data.tags
    found = {(one.dataset_split, one.metric_name): one.metric_value for one in data.eval_results}
    valid, test = run[2].report, run[2].test_report
    assert found["validation", "Pearson, Joy"] == valid.pearson[0]
    assert found["validation", "CCC, mean over targets"] == valid.mean_concordance
    assert found["test", "MAE, Calm"] == test.mae[1]
    assert len(found) == 2 * 3 * 3


@pytest.mark.parametrize(
    ("licence", "name", "other"),
    [
        (Licence(name="CC BY-NC-SA 4.0", commercial_use="no"), "cc-by-nc-sa-4.0", None),
        (Licence(name="MIT", commercial_use="yes"), "mit", None),
        (Licence(name="our own: ask", commercial_use="unknown"), "other", "our-own-ask"),
        (Licence(name="a research licence", commercial_use="no"), "other", "a-research-licence"),
    ],
)
def test_a_licence_that_the_hub_does_not_list_is_given_by_its_name(run, licence, name, other):
    data = front_matter(run[0], licence, {})
    assert (data.license, data.license_name) == (name, other)


def test_every_picture_it_shows_is_in_the_folder(run, card):
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", card)
    assert shown == ["curves.svg", "scatter_valid.svg", "scatter_test.svg"]
    assert all((run[2].folder / name).is_file() for name in shown)


def test_it_counts_the_numbers_that_were_trained(run, card):
    weights = load_file(run[2].folder / "best.safetensors")
    assert f"- Parameters: {sum(tensor.numel() for tensor in weights.values()):,}\n" in card


def test_it_says_seed_machine_and_precision(card):
    assert "- Seed: 5\n" in card
    assert re.search(r"^- Machine: (CPU|one CUDA GPU), fp32; [\d.]+ s for 2 epochs, [\d,]+ frames/s$", card, re.M)


def test_it_lists_what_differs_from_the_paper(card):
    line = next(line for line in card.splitlines() if line.startswith("- Settings that differ"))
    assert "`lr` 0.003 (paper: 0.0001); `epochs` 2 (paper: 30); `lstm.hidden` 8 (paper: the input's width)" in line
    assert "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim" in line


def test_the_papers_settings_differ_in_nothing_whatever_the_machine():
    assert departures(TrainSettings(seed=3, precision="fp32", device="cpu", label_scale=100.0)) == {}


def test_options_of_another_head_are_compared_with_its_own_defaults():
    found = departures(resolve_settings(head="mean", mixup=0.2))
    assert found == {"head": ("mean", "lstm"), "augment.mixup": (0.2, TrainSettings().augment["mixup"])}


def test_of_settings_of_which_the_paper_says_nothing_no_value_of_it_is_given():
    settings = resolve_settings(clock="face", fusion="transformer", **{"face.hidden": 8, "sound.head": "mean"})
    found = departures(settings.for_streams(("face", "sound")))
    assert found["streams.face.lstm.hidden"] == (8, "the input's width")
    assert found["streams.sound.head"] == ("mean", "lstm")
    assert (found["clock"], found["fusion.name"]) == (("face", None), ("transformer", None))
    assert departures(resolve_settings(head="gru", hidden=8))["gru.hidden"] == (8, None)


def test_without_intervals_there_is_no_such_column_and_without_pictures_no_link(run, tmp_path):
    settings, inputs, result = run
    text = model_card(settings, inputs, replace(result, folder=tmp_path))
    assert "95 %" not in text
    assert "![" not in text
    assert f"| **mean over targets** | {result.report.mean_pearson:.3f} | " in text


def test_an_undefined_correlation_is_named_in_table_and_limits(run):
    settings, inputs, result = run
    target = np.linspace(0, 1, 5)[:, None] * [1.0, 0.0]
    report = evaluate(target[::-1] * 0.5 + [0.0, 0.2], target, ("Joy", "Calm"))
    text = model_card(settings, inputs, replace(result, report=report))
    assert "| Calm | undefined | " in text
    assert "Pearson is undefined for Calm" in text.split("## Limits")[1]
    assert f"{len(inputs.splits['valid'])} validation clips are few" in text
    assert "- warning: only 5 clips: with 5, correlations up to 0.88 are chance" in text.split("## Use")[0]


def test_a_run_without_a_choice_is_not_called_optimistic(run):
    settings, inputs, result = run
    history = [record | {"valid_mean_pearson": None, "valid_pearson": {}} for record in result.history]
    text = model_card(settings, inputs, replace(result, history=history))
    assert "is kept, chosen by no clip" in text
    assert "optimistic" not in text


def test_a_column_name_cannot_break_the_table():
    report = evaluate([[0.0], [1.0]], [[0.0], [0.5]], ["a|b"])
    assert len(set(map(len, [re.split(r"(?<!\\)\|", line) for line in report.markdown().splitlines()]))) == 1


def test_the_card_warns_of_validation_clips_that_are_training_clips(labelled, labelled_cache, tmp_path):
    lines = (labelled / "train.csv").read_text().splitlines(keepends=True)
    (tmp_path / "valid.csv").write_text((labelled / "valid.csv").read_text() + "".join(lines[1:4]))
    for name, valid in (("run", tmp_path), ("plain", labelled)):
        files = (labelled_cache, labelled / "train.csv", valid / "valid.csv")
        emi.train_head(*files, tmp_path / name, head="mean", epochs=2)
    said = "3 of the 15 validation clips are training clips as well"
    assert said in " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert "training clips as well" not in (tmp_path / "plain" / "README.md").read_text()
