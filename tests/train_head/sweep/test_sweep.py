"""Sweeps from a space to the best heads: counts, resuming, dead workers, what is shared and what is written."""

import csv
import html
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest

import emi
from cache import CacheWriter, Clip, Header
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.runs.load import load_head

SPACE = """
head = ["mean", "lstm"]
loss = ["mse", "ccc"]
lr = { log = [1e-3, 3e-2] }
epochs = 4
[lstm]
hidden = { log_int = [4, 16] }
layers = 1
"""
SLOW = """
head = "lstm"
lr = { log = [1e-3, 3e-2] }
epochs = 400
[lstm]
hidden = 48
"""


PYTHON = sys.executable
"""Started for itself: its workers are looked for among its children."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch, warm_children: None) -> None:
    """Figures take longer than these runs."""
    monkeypatch.setattr("train_head.reports.figures.draw_run", lambda *_: None)


def sweep(root: Path, out: Path, space: str = SPACE, **settings):
    path = out.with_suffix(".toml")
    path.write_text(space)
    files = (root / "features.zarr", root / "train.csv", root / "valid.csv")
    return emi.sweep(*files, out, path, **({"trials": 8, "jobs": 1, "top": 0} | settings))


def start(root: Path, out: Path, space: str, *options: object) -> subprocess.Popen:
    path = out.with_suffix(".toml")
    path.write_text(space)
    files = ("--cache", root / "features.zarr", "--train", root / "train.csv", "--valid", root / "valid.csv")
    command = [PYTHON, "-m", "emi", "sweep", *files, "--space", path, "--out", out, "--top", "0", *options]
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def drawn(out: Path) -> list[tuple[str, ...]]:
    """What each trial was, and how it did, without what a clock measured."""
    return [tuple(value for name, value in row.items() if name != "seconds") for row in rows(out)]


def workers(parent: int) -> list[int]:
    """Pids of a process's children that train."""
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-f", "spawn_main"], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in found.stdout.split()]


def until(condition, process: subprocess.Popen, seconds: float = 100):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def reported(out: Path, epochs: int):
    """Whether trials have reported so many epochs, by what the journal says."""
    journal = out / "study.journal"
    return lambda: journal.is_file() and journal.read_bytes().count(b'"intermediate_value"') >= epochs


@pytest.fixture(scope="module")
def whole(labelled: Path, labelled_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """A sweep that nobody interrupted, its best three trained again."""
    out = tmp_path_factory.mktemp("whole") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
        return sweep(labelled, out, trials=12, jobs=1, top=3, seeds=2)


def test_every_trial_is_listed_once_with_what_was_drawn_and_how_it_ended(whole):
    found = rows(whole.folder)
    assert [int(row["number"]) for row in found] == list(range(12))
    assert {row["state"] for row in found} <= {"complete", "pruned"}
    complete = [row for row in found if row["state"] == "complete"]
    assert (len(complete), 12 - len(complete)) == (whole.status.complete, whole.status.pruned)
    assert all(row["epochs"] == "4" for row in complete)
    assert all(int(row["epochs"]) < 4 for row in found if row["state"] == "pruned")
    assert all((row["lstm.hidden"] != "") == (row["head"] == "lstm") for row in found)
    assert max(float(row["value"]) for row in complete) == whole.status.best
    assert not (whole.folder / "shared").exists()


def test_the_best_are_trained_again_and_the_best_of_those_is_what_best_toml_says(whole, labelled, tmp_path):
    found = sorted(rows(whole.folder), key=lambda r: (r["state"] != "complete", -int(r["epochs"]), -float(r["value"])))
    assert {one.number for one in whole.retrained} == {int(row["number"]) for row in found[:3]}
    assert all(one.trial_score == float(rows(whole.folder)[one.number]["value"]) for one in whole.retrained)
    assert [one.score for one in whole.retrained] == sorted((one.score for one in whole.retrained), reverse=True)
    first = whole.retrained[0]
    (complete,) = (one for one in whole.retrained if rows(whole.folder)[one.number]["state"] == "complete")
    # its first seed saw what the trial saw, here where nothing was made cheaper
    assert complete.result.valid.members[0].mean_pearson == pytest.approx(complete.trial_score, abs=1e-6)
    files = (labelled / "features.zarr", labelled / "train.csv", labelled / "valid.csv")
    again = emi.train_head(*files, tmp_path / "run", config=whole.folder / "best.toml")
    assert again.report.pearson == first.result.valid.members[0].pearson
    assert load_head(whole.folder / "best" / f"trial-{first.number:04d}")


def test_the_report_is_one_file_that_asks_for_nothing_from_the_network(whole):
    page = (whole.folder / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)", page)
    assert page.count("<svg") >= 2
    for one in whole.retrained:
        assert f"<td>{one.number}</td><td>{one.trial_score:.3f}</td>" in page
    assert (whole.folder / "best.toml").read_text() in html.unescape(page)


def test_every_mean_is_named_and_three_trials_have_no_rank_correlation(whole):
    page, table = (whole.folder / "report.html").read_text(), whole.table()
    assert "mean ± std over seeds" in table
    assert "(Pearson, mean over targets)" in table
    assert "<th>mean over seeds</th>" in page
    assert "<th>mean</th>" not in page
    for text in (page, table):
        assert "Fewer than 5 trials of different value were retrained" in html.unescape(text)
    assert "It takes 20 trials" in page


def test_a_finished_sweep_has_nothing_to_do_and_more_trials_go_on_from_it(whole, labelled, tmp_path):
    import shutil

    out = tmp_path / "sweep"
    shutil.copytree(whole.folder, out)
    before = drawn(out)
    again = sweep(labelled, out, trials=12, jobs=1, top=3, seeds=2)
    assert again.nothing_to_do
    assert drawn(out) == before
    more = sweep(labelled, out, trials=14, jobs=2, top=0)
    assert not more.nothing_to_do
    assert more.status.finished == 14
    assert drawn(out)[:12] == before


@pytest.mark.parametrize("sampler", ["tpe", pytest.param("random", marks=pytest.mark.slow)])
def test_a_sweep_that_was_killed_draws_the_same_trials_in_the_end(labelled, labelled_cache, tmp_path, sampler):
    space = SLOW.replace("epochs = 400", "epochs = 12")
    options = ("--trials", 6, "--jobs", 1, "--sampler", sampler)
    for after in (4, 16):
        process = start(labelled, tmp_path / "killed", space, *options)
        until(reported(tmp_path / "killed", after), process)
        process.kill()
        process.communicate()
    process = start(labelled, tmp_path / "killed", space, *options)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    sweep(labelled, tmp_path / "whole", space, trials=6, jobs=1, sampler=sampler)
    assert drawn(tmp_path / "killed") == drawn(tmp_path / "whole")
    assert len(rows(tmp_path / "killed")) == 6


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_journal_that_ends_anywhere_leads_to_the_same_trials(whole, labelled, tmp_path, share):
    import shutil

    out = tmp_path / "sweep"
    shutil.copytree(whole.folder, out)
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    (out / "study.journal").write_bytes(b"".join(lines[: round(share * len(lines))]))
    sweep(labelled, out, trials=12, jobs=1, top=0)
    assert drawn(out) == drawn(whole.folder)


def test_a_worker_that_dies_while_it_waits_for_an_answer_is_replaced(labelled, labelled_cache, tmp_path):
    out = tmp_path / "sweep"
    process = start(labelled, out, SLOW.replace("400", "30"), "--trials", 2, "--jobs", 1, "--pruner", "none")
    until(reported(out, 3), process)
    (child,) = workers(process.pid)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)  # by now it waits
    os.kill(child, signal.SIGKILL)
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert [row["state"] for row in rows(out)].count("complete") == 2
    assert [row["state"] for row in rows(out)].count("lost") == 1


def test_the_column_of_the_groups_is_no_target(labelled, labelled_cache, tmp_path):
    for name in ("train", "valid"):
        with (labelled / f"{name}.csv").open(newline="") as file:
            header, *lines = csv.reader(file)
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            speakers = ([*cells, f"0.{i % 3 + (name == 'valid') * 3}"] for i, cells in enumerate(lines))
            csv.writer(file).writerows([[*header, "speaker"], *speakers])
    (tmp_path / "features.zarr").symlink_to(labelled / "features.zarr")
    found = sweep(tmp_path, tmp_path / "sweep", trials=2, pca=4, top=1, seeds=1, group_by="speaker", pruner="none")
    plain = sweep(labelled, tmp_path / "plain", trials=2, pca=4, pruner="none")
    assert found.status.best == plain.status.best
    assert found.retrained[0].result.report.names == ("Joy", "Calm")


def test_a_worker_that_dies_takes_one_trial_with_it_which_is_run_again(labelled, labelled_cache, tmp_path):
    out = tmp_path / "sweep"
    process = start(labelled, out, SLOW.replace("400", "40"), "--trials", 3, "--jobs", 2, "--pruner", "none")
    until(reported(out, 3), process)
    os.kill(until(lambda: workers(process.pid), process)[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    found = rows(out)
    assert [row["state"] for row in found].count("complete") == 3
    (lost,) = (row for row in found if row["state"] == "lost")
    (again,) = (row for row in found if row["lr"] == lost["lr"] and row is not lost)
    assert again["state"] == "complete"
    assert "SIGKILL" in lost["reason"]
    assert "3 trials: 3 complete, 0 pruned, 0 failed" in said


def test_when_the_sweep_is_killed_its_workers_end(labelled, labelled_cache, tmp_path):
    process = start(labelled, tmp_path / "sweep", SLOW, "--trials", 4, "--jobs", 2)
    until(reported(tmp_path / "sweep", 3), process)
    children = workers(process.pid)
    assert children
    process.kill()
    process.communicate()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ctrl_c_keeps_what_is_done(labelled, labelled_cache, tmp_path):
    out = tmp_path / "sweep"
    process = start(labelled, out, SLOW.replace("400", "20"), "--trials", 200, "--jobs", 1, "--pruner", "none")
    until(reported(out, 25), process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert rows(out)[0]["state"] == "complete"


def test_failed_trials_say_why_and_the_others_go_on(labelled, labelled_cache, tmp_path):
    space = 'head = "lstm"\nlr = [1e-3, 1e38]\nepochs = 2\nbatch_size = 4\n[lstm]\nhidden = 4\nlayers = 1\n'
    result = sweep(labelled, tmp_path / "sweep", space, trials=6, sampler="random", seed=1, pruner="none")
    failed = [row for row in rows(result.folder) if row["state"] == "failed"]
    assert 0 < len(failed) == result.status.failed < 6
    assert all(float(row["lr"]) == 1e38 and "epoch" in row["reason"] for row in failed)
    assert result.status.finished == 6


def test_settings_that_do_not_go_together_fail_their_trial_only(labelled, labelled_cache, tmp_path):
    space = 'head = "transformer"\nepochs = 1\n[transformer]\nhidden = [8, 12]\nheads = [4, 8]\n'
    result = sweep(labelled, tmp_path / "sweep", space, trials=8, sampler="random")
    failed = [row for row in rows(result.folder) if row["state"] == "failed"]
    wrong = [r for r in rows(result.folder) if int(r["transformer.hidden"]) % int(r["transformer.heads"])]
    assert failed == wrong
    assert failed
    assert all("heads" in row["reason"] for row in failed)


def test_a_sweep_without_any_complete_trial_says_why(labelled, labelled_cache, tmp_path):
    space = 'head = "mean"\nlr = [1e38]\nepochs = 2\nbatch_size = 4\n'
    with pytest.raises(
        TrainSettingsError, match=r"none of the 2 trials learnt anything: the first that failed says: .*epoch 1"
    ):
        sweep(labelled, tmp_path / "sweep", space, trials=2)
    assert len(rows(tmp_path / "sweep")) == 2


def test_trials_on_less_and_the_best_on_all(labelled, labelled_cache, tmp_path):
    result = sweep(labelled, tmp_path / "sweep", trials=3, pool=3, pca=5, clips=12, top=1, seeds=1, pruner="none")
    with emi.open_cache(result.folder / "cheap.zarr") as cheap:
        assert cheap.dim == 5
    config = tomllib.loads(next((result.folder / "best").glob("*/config.toml")).read_text())
    assert config["features"]["dim"] == 384
    card = next((result.folder / "best").glob("*/seed-0/README.md")).read_text()
    assert "| train | 28 of 28" in card


def test_two_sweeps_do_not_share_a_folder(labelled, labelled_cache, tmp_path):
    process = start(labelled, tmp_path / "sweep", SLOW, "--trials", 4, "--jobs", 1)
    until(reported(tmp_path / "sweep", 1), process)
    with pytest.raises(RunFolderError, match="another sweep runs in"):
        sweep(labelled, tmp_path / "sweep", SLOW, trials=4)
    process.kill()
    process.communicate()


def test_another_sweep_in_the_folder_is_refused_and_says_what_differs(whole, labelled, tmp_path):
    with pytest.raises(RunFolderError, match=r"another sweep: .* in --space"):
        sweep(labelled, whole.folder, SPACE.replace("1e-3", "1e-4"))
    with pytest.raises(RunFolderError, match=r"--pool \(there .*--seed \(there"):
        sweep(labelled, whole.folder, seed=1, pool=2)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(RunFolderError, match="is no sweep"):
        sweep(labelled, tmp_path / "other")


def test_a_torn_last_line_of_the_journal_is_dropped(whole, labelled, tmp_path):
    import shutil

    out = tmp_path / "sweep"
    shutil.copytree(whole.folder, out)
    journal = out / "study.journal"
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 5, "trial')
    assert sweep(labelled, out, trials=12, top=0).nothing_to_do
    assert journal.read_bytes().endswith(b"\n")


def test_a_damaged_journal_is_one_sentence(whole, labelled, tmp_path):
    import shutil

    out = tmp_path / "sweep"
    shutil.copytree(whole.folder, out)
    lines = (out / "study.journal").read_bytes().splitlines(keepends=True)
    (out / "study.journal").write_bytes(b"".join([*lines[:3], b"{rubbish\n", *lines[3:]]))
    with pytest.raises(RunFolderError, match="is damaged"):
        sweep(labelled, out, trials=12)


def test_all_workers_read_one_copy_of_the_frames(tmp_path):
    """Proved by the proportional set size: each page counts for a process by one over the number that map it."""
    rng = np.random.default_rng(0)
    header = Header(fingerprint={"backbone": "synthetic", "dtype": "float16"}, dim=256)
    with CacheWriter(tmp_path / "features.zarr", header) as writer:
        for i in range(400):
            writer.add(Clip(f"{i:05d}", rng.normal(size=(300, 256)).astype(np.float16), None, None, 6.0))
    for name, part in (("train", range(300)), ("valid", range(300, 400))):
        lines = ["Filename,Joy", *(f"{i},{rng.uniform():.3f}" for i in part)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    space = 'head = "mean"\nlr = { log = [1e-4, 1e-3] }\nepochs = 500\n'
    process = start(tmp_path, tmp_path / "sweep", space, "--trials", 2, "--jobs", 2, "--pruner", "none")
    until(reported(tmp_path / "sweep", 20), process)
    children = until(lambda: pids if len(pids := workers(process.pid)) == 2 else None, process)
    mapped = [_mapped_bytes(pid) for pid in (*children, process.pid)]
    process.kill()
    process.communicate()
    size = 400 * 300 * 256 * 2
    assert all(rss >= 0.9 * size for rss, _ in mapped[:2])  # each reads all of it,
    assert sum(pss for _, pss in mapped) <= 1.05 * size  # and all have one copy


def _mapped_bytes(pid: int) -> tuple[int, int]:
    """Resident and proportional bytes of what a process maps from the shared folder."""
    rss = pss = 0
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = "/shared/" in line
        elif inside and line.startswith(("Rss:", "Pss:")):
            amount = 1024 * int(line.split()[1])
            rss, pss = (rss + amount, pss) if line.startswith("Rss") else (rss, pss + amount)
    return rss, pss


def test_labels_of_another_scale_reach_the_trials(labelled, labelled_cache, tmp_path):
    for name in ("train", "valid"):
        part = read_labels(labelled / f"{name}.csv")
        lines = [
            "Filename,Joy,Calm",
            *(f"{f},{100 * a:.1f},{100 * b:.1f}" for f, (a, b) in zip(part.filenames, part.values, strict=True)),
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "features.zarr").symlink_to(labelled / "features.zarr")
    result = sweep(tmp_path, tmp_path / "sweep", trials=2, label_scale=100.0, top=0)
    assert result.status.finished == 2
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["space"]["base"] == {"label_scale": 100.0}
