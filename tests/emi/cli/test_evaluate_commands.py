"""`emi evaluate`, `emi compare` and `emi predict --submission` as a user meets them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import emi
from cache.errors import EmiError
from emi.cli import app
from train_head.data.labels import read_labels

LABELS = "Filename,Speaker,Joy,Sad\n" + "".join(f"{i},s{i % 4},{i % 7 / 7:.3f},{i % 5 / 5}\n" for i in range(1, 25))
GUESS = "Filename,Joy,Sad\n" + "".join(f"{i},{i % 7 / 8:.3f},{i % 3 / 5}\n" for i in range(1, 25))


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == code, result.output
    return result


def fails(*arguments: object) -> str:
    """The one sentence that `emi.cli.main` prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(result.exception, EmiError), result.output
    return str(result.exception)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "guess.csv").write_text(GUESS)
    (tmp_path / "labels.csv").write_text(LABELS)
    return tmp_path / "guess.csv", tmp_path / "labels.csv"


@pytest.fixture(scope="module")
def trained(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("runs") / name for name in "ab"]
    for seed, folder in enumerate(folders):
        splits = labelled / "train.csv", labelled / "valid.csv"
        emi.train_head(labelled_cache, *splits, folder, epochs=1, head="mean", seed=seed)
    return folders


def test_evaluate_prints_metrics_and_intervals_and_writes_all_of_it(files, tmp_path):
    out = tmp_path / "scores.json"
    shown = run("evaluate", *files, "--group-by", "Speaker", "--bins", "--json", out).stdout
    for part in ("24 clips", "CCC", "95 % interval", "4 groups of 24 clips", "0.25-0.5"):
        assert part in shown
    numbers = json.loads(out.read_text())
    assert numbers["clips"] == 24
    low, high = numbers["intervals"]["mean_pearson"]
    assert low < numbers["mean_pearson"] < high
    assert sum(numbers["bins"]["targets"]["Joy"]["count"]) == 24


def test_few_groups_are_warned_of_in_text_and_json_and_no_two_means_have_one_name(files, tmp_path):
    out = tmp_path / "scores.json"
    shown = run("evaluate", *files, "--group-by", "Speaker", "--json", out).stdout
    warning = "warning: only 4 groups: the bootstrap intervals of fewer than 10 are too narrow"
    assert warning in shown.splitlines()
    assert json.loads(out.read_text())["intervals"]["warnings"] == [warning]
    firsts = [line.split("  ")[0] for line in shown.splitlines()]
    assert [first for first in firsts if "mean" in first] == ["mean over targets"]


def test_training_labels_give_the_baseline_that_a_model_has_to_beat(files, tmp_path):
    guess, labels = files
    train, out = tmp_path / "train.csv", tmp_path / "scores.json"
    train.write_text("Filename,Sad,Joy,Speaker\n50,0.2,0,s8\n51,0.4,1,s9\n")
    shown = run("evaluate", guess, labels, "--group-by", "Speaker", "--train", train, "--json", out).stdout
    truth = np.array([line.split(",")[2:] for line in LABELS.splitlines()[1:]], dtype=np.float32).astype(float)
    numbers = json.loads(out.read_text())["baselines"]
    assert numbers["mean of the training labels"]["mae"] == pytest.approx(
        {"Joy": np.abs(truth[:, 0] - 0.5).mean(), "Sad": np.abs(truth[:, 1] - 0.3).mean()}
    )
    assert numbers["all zeros"]["mean_mae"] == pytest.approx(truth.mean())
    assert f"{numbers['mean of the training labels']['mean_mae']:.3f}" in shown
    train.write_text("Filename,Sad\n50,0.2\n")
    assert "unknown column 'Joy'" in fails("evaluate", guess, labels, "--group-by", "Speaker", "--train", train)


def test_a_run_knows_its_training_labels_as_long_as_they_are_unchanged(trained, labelled, tmp_path):
    import shutil

    files = trained[0] / "predictions_valid.csv", labelled / "valid.csv"
    out = tmp_path / "scores.json"
    run("evaluate", *files, "--json", out)
    train, valid = (read_labels(labelled / f"{name}.csv").values.astype(float) for name in ("train", "valid"))
    found = json.loads(out.read_text())["baselines"]["mean of the training labels"]["mean_mae"]
    assert found == pytest.approx(np.abs(train.mean(0) - valid).mean())
    for foreign in ("[tool]\nx = 1\n", "data = 3\n", "no toml"):
        (tmp_path / "config.toml").write_text(foreign)
        shutil.copy(files[0], tmp_path / "guess.csv")
        assert "mean of the training" not in run("evaluate", tmp_path / "guess.csv", files[1]).stdout
    shutil.copytree(trained[0], tmp_path / "moved")
    config = tmp_path / "moved" / "config.toml"
    config.write_text(config.read_text().replace(str(labelled / "train.csv"), str(labelled / "valid.csv")))
    shown = run("evaluate", tmp_path / "moved" / files[0].name, files[1]).stdout
    assert "is gone or has changed since the run was made; give them with --train CSV" in shown
    assert "mean of the training labels  " not in shown


def test_intervals_and_bins_can_be_left_out(files):
    shown = run("evaluate", *files, "--group-by", "Speaker", "--no-intervals").stdout
    assert "mean" in shown
    assert "interval" not in shown
    assert "0.25-0.5" not in shown


def test_a_file_that_can_be_submitted_is_said_to_and_scored(files):
    shown = run("evaluate", *files, "--group-by", "Speaker", "--submission").stdout
    assert "can be submitted" in shown
    assert "Pearson" in shown


def test_a_file_that_cannot_be_submitted_lists_every_problem_and_exits_with_1(files, tmp_path):
    guess, labels = files
    guess.write_text(GUESS.replace("Joy", "joy").replace("\n7,0.000", "\n70,1.5"))
    out = tmp_path / "scores.json"
    result = run("evaluate", guess, labels, "--group-by", "Speaker", "--submission", "--json", out, code=1)
    problems = json.loads(out.read_text())["problems"]
    assert len(problems) == 4  # header, missing, not asked for, out of range
    for problem in problems:
        assert f"{guess}: {problem}" in result.stderr
    assert "Pearson" not in result.stdout


def test_a_template_without_values_is_checked_against_and_not_scored(files):
    guess, template = files
    template.write_text("Filename,Joy,Sad\n" + "".join(f"{i},,\n" for i in range(1, 25)))
    shown = run("evaluate", guess, template, "--submission").stdout
    assert "can be submitted" in shown
    assert "Pearson" not in shown


def test_compare_shows_the_difference_of_two_runs_and_writes_it(trained, tmp_path):
    out = tmp_path / "difference.json"
    shown = run("compare", *trained, "--json", out, "--resamples", 200).stdout
    assert "A - B" in shown
    assert "200 bootstrap resamples" in shown
    numbers = json.loads(out.read_text())["difference"]
    joy = numbers["targets"]["Joy"]
    assert joy["difference"] == pytest.approx(joy["a"] - joy["b"])
    assert 0 < numbers["mean"]["p"] <= 1


def test_compare_by_error_says_that_lower_is_better(trained, tmp_path):
    out = tmp_path / "difference.json"
    shown = run("compare", *trained, "--metric", "mae", "--json", out, "--resamples", 50).stdout
    assert "MAE: A is better where A - B is below 0" in shown
    assert "exact sign-flip test over 12 clips" in shown
    assert "mean of the training labels: MAE" in shown
    assert json.loads(out.read_text())["difference"]["higher_is_better"] is False
    run("compare", *trained, "--metric", "spearman", code=2)


def test_compare_refuses_in_one_sentence(trained, files):
    assert "has no predictions_test.csv" in fails("compare", *trained, "--split", "test")
    assert "--labels CSV" in fails("compare", files[0], files[0])
    run("compare", *trained, "--split", "validation", code=2)


def test_predict_writes_the_clipped_predictions_as_a_challenge_takes_them(trained, labelled, tmp_path):
    sent, plain = tmp_path / "sent.csv", tmp_path / "plain.csv"
    arguments = ["--model", trained[0], "--submission", sent, "--csv", plain]
    shown = run("predict", labelled / "audio", *arguments).stdout
    predicted = read_labels(plain, check_range=False)
    outside = int(((predicted.values < 0) | (predicted.values > 1)).sum())
    assert f"wrote 40 predictions to {sent}; {outside} values were clipped to 0 and 1\n" in shown
    assert sent.read_text().splitlines()[0] == "Filename,Joy,Calm"
    written = read_labels(sent)
    assert written.filenames == tuple(str(i) for i in range(40))
    np.testing.assert_array_equal(written.values, predicted.values.clip(0, 1))


def test_predict_takes_the_clips_and_rows_of_a_template_and_refuses_others(trained, labelled, tmp_path):
    sent, template = tmp_path / "sent.csv", tmp_path / "template.csv"
    media = [labelled / "audio" / f"{i:05d}.wav" for i in (3, 11, 5)]
    template.write_text("Filename,Joy,Calm\n11,,\n3,,\n5,,\n")
    arguments = ["--model", trained[0], "--submission", sent, "--template", template]
    run("predict", *media, *arguments)
    assert [line.split(",")[0] for line in sent.read_text().splitlines()] == ["Filename", "11", "3", "5"]
    run("evaluate", sent, template, "--submission")
    sent.unlink()
    said = run("predict", labelled / "audio", *arguments).stderr.splitlines()
    assert said[0] == "predicting 3 clips"
    assert said[-1].startswith("predicting 3 of 3 clips took ")
    assert [line.split(",")[0] for line in sent.read_text().splitlines()] == ["Filename", "11", "3", "5"]


@pytest.fixture
def unpredicted(monkeypatch):
    """Fails where anything is predicted."""
    monkeypatch.setattr("emi.prediction.Model.iterate_sources", lambda *_: pytest.fail("something was predicted"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("Filename,Joy,Calm\n3,,\n500,,\n", "1 of its 2 clips are not among the media (first: 500)"),
        ("Filename,Joy,Sad\n3,,\n", "has the targets Joy, Sad, and the run predicts Joy, Calm"),
        ("Filename,Joy,Calm\n3,,\n3,,\n", "1 clips stand twice"),
        ("Name,Joy,Calm\n3,,\n", "has no Filename column"),
    ],
)
def test_a_template_that_cannot_be_followed_is_refused_before_anything_is_predicted(
    trained, labelled, tmp_path, unpredicted, rows, message
):
    (tmp_path / "template.csv").write_text(rows)
    sent = ["--submission", tmp_path / "sent.csv", "--template", tmp_path / "template.csv"]
    assert message in fails("predict", labelled / "audio", "--model", trained[0], *sent)
    assert [path.name for path in tmp_path.iterdir()] == ["template.csv"]


@pytest.mark.parametrize("template", [True, False])
def test_a_submission_is_written_whole_or_not_at_all(trained, labelled, tmp_path, template):
    (tmp_path / "template.csv").write_text("Filename,Joy,Calm\n3,,\n500,,\n")
    (tmp_path / "00500.wav").write_bytes(b"")
    media = [labelled / "audio" / "00003.wav", tmp_path / "00500.wav"]
    extra = ["--template", tmp_path / "template.csv"] if template else []
    before = {path.name for path in tmp_path.iterdir()}
    sent = ["--submission", tmp_path / "sent.csv", *extra]
    result = run("predict", *media, "--model", trained[0], *sent, code=1)
    assert "00500.wav: is empty (0 bytes)" in result.stderr
    assert "sent.csv was not written: 1 of its 2 clips cannot be read" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == before | {"sent.csv.partial"}  # for the next run


@pytest.mark.parametrize("option", ["--csv", "--submission"])
def test_predictions_that_cannot_be_written_leave_nothing_and_keep_what_was_there(
    trained, labelled, tmp_path, monkeypatch, option
):
    (tmp_path / "out.csv").write_text("mine")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cache.system.atomic_file.replace_durably", full)
    arguments = ["--model", trained[0], option, tmp_path / "out.csv"]
    result = CliRunner().invoke(app, list(map(str, ["predict", labelled / "audio" / "00003.wav", *arguments])))
    assert isinstance(result.exception, OSError)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.csv", "mine")]


def test_predictions_go_to_standard_output_alone_and_into_a_device(trained, labelled, tmp_path):
    shown = run("predict", labelled / "audio" / "00003.wav", "--model", trained[0])
    assert shown.stdout.splitlines()[0] == "Filename,Joy,Calm"
    assert len(shown.stdout.splitlines()) == 2
    assert "predicting 1 clip\n" in shown.stderr
    assert "predicting 1 of 1 clips" in shown.stderr
    (tmp_path / "link.csv").symlink_to("real.csv")
    run("predict", labelled / "audio" / "00003.wav", "--model", trained[0], "--csv", tmp_path / "link.csv")
    assert (tmp_path / "real.csv").read_text() == shown.stdout
    run("predict", labelled / "audio" / "00003.wav", "--model", trained[0], "--csv", "/dev/null")


def test_a_template_needs_a_submission_and_has_to_exist(trained, labelled, tmp_path):
    predict = ["predict", labelled / "audio", "--model", trained[0]]
    assert "--submission FILE" in fails(*predict, "--template", tmp_path / "t.csv")
    missing = ["--submission", tmp_path / "s.csv", "--template", tmp_path / "t.csv"]
    assert "there is no template at" in fails(*predict, *missing)


def frame_folder(place: Path, lengths: dict[str, int], seed: int, header: str = "valence,arousal") -> Path:
    place.mkdir()
    rng = np.random.default_rng(seed)
    for clip, rows in lengths.items():
        values = np.cumsum(rng.uniform(-0.05, 0.05, (rows, 2)), axis=0)
        (place / f"{clip}.txt").write_text("\n".join([header, *(f"{a:.4f},{b:.4f}" for a, b in values), ""]))
    return place


def test_folders_of_frames_are_scored_by_row_and_by_clip_over_clips(tmp_path):
    labels = frame_folder(tmp_path / "labels", {"1-30": 150, "2_left": 80, "3": 60}, seed=0)
    guess = frame_folder(tmp_path / "guess", {"1-30": 149, "2_left": 80, "3": 60}, seed=1, header="arousal,valence")
    lines = (labels / "3.txt").read_text().splitlines()
    (labels / "3.txt").write_text("\n".join([*lines[:-10], *["-5,-5"] * 10]))
    out = tmp_path / "scores.json"
    shown = run("evaluate", guess, labels, "--label-range", "-1,1", "--bins", "--json", out)
    for part in ("3 clips, 289 rows", "3 clips with 279 rows", "within each clip:", "CCC valence", "labelled rows"):
        assert part in shown.stdout
    assert "1 clip cut to the rows that labels and predictions have in common: 1-30: 149 rows for 150" in shown.stderr
    numbers = json.loads(out.read_text())
    read = lambda place, clip: np.loadtxt(place / f"{clip}.txt", delimiter=",", skiprows=1)  # noqa: E731
    rows = {"1-30": 149, "2_left": 80, "3": 50}
    truth = {clip: read(labels, clip)[:n, 0] for clip, n in rows.items()}
    predicted = {clip: read(guess, clip)[:n, 1] for clip, n in rows.items()}
    for found, a, b in (
        (numbers, np.concatenate([*predicted.values()]), np.concatenate([*truth.values()])),
        *((numbers["clips"][clip], predicted[clip], truth[clip]) for clip in rows),
    ):
        ccc = 2 * np.cov(a, b, bias=True)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
        assert found["concordance"]["valence"] == pytest.approx(ccc, abs=1e-6)
        assert found["pearson"]["valence"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-6)
    low, high = numbers["intervals"]["mean_ccc"]
    assert low <= numbers["mean_concordance"] <= high
    assert (numbers["rows"], numbers["intervals"]["clips"]) == (289, 3)


def test_folders_of_other_clips_or_rows_are_refused_by_name(tmp_path):
    labels = frame_folder(tmp_path / "labels", {"a": 150, "b": 80}, seed=0)
    scale = ("--label-range", "-1,1")
    assert "first: b" in fails("evaluate", frame_folder(tmp_path / "x", {"a": 150}, 1), labels, *scale)
    assert "first: c" in fails("evaluate", frame_folder(tmp_path / "y", {"a": 150, "b": 80, "c": 9}, 1), labels, *scale)
    short = frame_folder(tmp_path / "z", {"a": 150, "b": 70}, 1)
    assert "b: 70 rows for 80 of labels" in fails("evaluate", short, labels, *scale)
    assert "--submission checks a CSV" in fails("evaluate", short, labels, *scale, "--submission")


def test_folders_of_frames_are_compared_by_ccc(tmp_path):
    labels = frame_folder(tmp_path / "labels", {"a": 150, "b": 80}, seed=0)
    sides = [frame_folder(tmp_path / name, {"a": 150, "b": 79}, seed) for name, seed in (("x", 1), ("y", 2))]
    shown = run("compare", *sides, "--labels", labels, "--label-range", "-1,1", "--resamples", 50).stdout
    for part in ("CCC:", "2 clips with 229 rows", "test over 2 clips", "b: 79 rows for 80 of labels"):
        assert part in shown
