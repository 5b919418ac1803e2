"""Scalars for TensorBoard, read back by its own reader."""

import json
import sys

import pytest

from train_head.protocols import train
from train_head.reports.tensorboard import Board, BoardDependencyError
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.loop import Reporter
from train_head.training.settings import resolve_settings

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def record_of(epoch: int, joy: float | None = 0.25) -> dict[str, object]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "lr": 1e-4,
        "frames_per_second": 1000 * epoch,
        "valid_mean_pearson": joy,
        "valid_pearson": {"Joy": joy},
    }


def read(run) -> dict[str, list[tuple[int, float]]]:
    """Tag to (step, value) of everything in RUN/tensorboard."""
    events = event_accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def keep(run, records) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_training_leaves_the_scalars_of_its_metrics(labelled, labelled_cache, tmp_path):
    settings = resolve_settings(hidden=8, epochs=3, lr=3e-3, precision="fp32")
    run = tmp_path / "run"
    with Board(run) as board:
        reporter = Reporter()
        reporter.epoch_finished = board
        inputs = gather_inputs(labelled_cache, LabelFiles.named(labelled / "train.csv", labelled / "valid.csv"))
        result = train(inputs, run, settings, reporter=reporter).result
    found = read(run)
    wanted = {
        "train/loss": [record["train_loss"] for record in result.history],
        "train/lr": [record["lr"] for record in result.history],
        "train/frames_per_second": [record["frames_per_second"] for record in result.history],
        "valid/pearson/mean": [record["valid_mean_pearson"] for record in result.history],
        "valid/pearson/Joy": [record["valid_pearson"]["Joy"] for record in result.history],
        "valid/pearson/Calm": [record["valid_pearson"]["Calm"] for record in result.history],
    }
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert [step for step, _ in found[tag]] == [1, 2, 3]
        assert [value for _, value in found[tag]] == pytest.approx(values, rel=1e-6)


def test_a_resumed_run_has_each_epoch_once(tmp_path):
    records = [record_of(epoch) for epoch in range(1, 6)]
    with Board(tmp_path) as board:
        for record in records[:3]:
            board(record | {"train_loss": 9.0})
    keep(tmp_path, records[:2])  # the third epoch was not saved, and is done again
    with Board(tmp_path) as board:
        for record in records[2:]:
            board(record)
    losses = read(tmp_path)["train/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
    assert [value for _, value in losses] == pytest.approx([1 / epoch for epoch in range(1, 6)])


def test_a_run_that_began_without_a_board_is_shown_whole(tmp_path):
    keep(tmp_path, [record_of(epoch) for epoch in range(1, 5)])
    with Board(tmp_path) as board:
        board(record_of(4))
    assert [step for step, _ in read(tmp_path)["train/loss"]] == [1, 2, 3, 4]


def test_an_undefined_correlation_is_no_point(tmp_path):
    with Board(tmp_path) as board:
        board(record_of(1, None))
        board(record_of(2, 0.5))
    assert read(tmp_path)["valid/pearson/Joy"] == read(tmp_path)["valid/pearson/mean"] == [(2, 0.5)]


def test_several_runs_have_a_folder_each(tmp_path):
    with Board(tmp_path) as board:
        for name in ("seed-0", "seed-1"):
            board.move(tmp_path / name)
            board(record_of(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-0", "seed-1"]
    assert read(tmp_path / "seed-1")["train/loss"] == [(1, 1.0)]


def test_a_board_without_an_epoch_leaves_nothing(tmp_path):
    with Board(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()


def test_without_the_package_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(BoardDependencyError, match=r"pip install 'emi-mimicry\[tensorboard\]'$"):
        Board(tmp_path)
