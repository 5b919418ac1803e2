"""The refusal to resume names what the user changed, not what follows from it."""

import copy
import threading
from dataclasses import fields
from typing import Any

import pytest
import typer

from emi.cli import app
from emi.finetuning.settings import FinetuneSettings
from train_head.errors import RunFolderError
from train_head.runs.changes import NOT_COMPARED, OPTIONS, Changes
from train_head.runs.run_folder import prepare_folder, read_config_file
from train_head.sweep.sweep import sweep_changes
from train_head.training.settings import TrainSettings, resolve_settings


def config(settings: TrainSettings | None = None, **tables: Any) -> dict[str, Any]:
    """A run's config.toml."""
    data = {"caches": ["/a.zarr"], "train": "/t.csv", "train_sha256": "t", "valid": "/v.csv", "valid_sha256": "v"}
    made = {"backbone": "silero", "weights_sha256": "1" * 64, "config_sha256": "2" * 64, "max_seconds": 12.0}
    features = {"dim": 384, "vad_names": [], "hop_seconds": 0.032, "source": "silero", "fingerprint": made}
    tables = {"data": data | {"targets": ["Joy"]}, "features": features} | tables
    return (settings or TrainSettings()).to_toml() | copy.deepcopy(tables) | {"versions": {"emi": "1"}}


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"head": "gru"}, ["--head (there 'lstm', now 'gru')"]),
        ({"head": "mean"}, ["--head (there 'lstm', now 'mean')"]),
        ({"head": "gru", "hidden": 9}, ["--head (there 'lstm', now 'gru')", "--hidden (there 0, now 9)"]),
        ({"hidden": 9, "lr": 0.5}, ["--lr (there 0.0001, now 0.5)", "--hidden (there 0, now 9)"]),
        ({"mixup": 0.2, "ema": 0.9}, ["--set ema (there 0.0, now 0.9)", "--set mixup (there 0.0, now 0.2)"]),
        ({"standardise": True}, ["--standardise (there False, now True)"]),
    ],
)
def test_settings_are_named_by_their_options_and_a_heads_defaults_are_not(now, named):
    assert Changes(config(), config(resolve_settings(**now))).named == named


def test_options_of_two_heads_are_compared_where_they_were_given():
    there, now = (config(resolve_settings(head=head, hidden=16)) for head in ("lstm", "gru"))
    assert Changes(there, now).named == ["--head (there 'lstm', now 'gru')"]


def test_the_way_back_is_a_line_of_options():
    changes = Changes(config(), config(resolve_settings(head="gru", loss="ccc", standardise=True, weighting="lds")))
    assert changes.advice == (
        "To resume that run, give --head lstm --loss mse --no-standardise --set weighting=none; for this one, choose a "
        "new --out"
    )


def test_contents_of_labels_are_told_from_their_places():
    one = config()
    moved, edited, other = (config() for _ in range(3))
    moved["data"]["train"] = "/elsewhere.csv"
    edited["data"] |= {"train_sha256": "t2", "targets": ["Joy", "Calm"]}
    other["data"] |= {"train": "/u.csv", "train_sha256": "u", "valid": "/w.csv", "valid_sha256": "w"}
    assert not Changes(one, moved)
    assert Changes(one, edited).named == ["--train (/t.csv has other contents than it had)"]
    assert Changes(one, other).named == [
        "--train (there '/t.csv', now '/u.csv', with other contents)",
        "--valid (there '/v.csv', now '/w.csv', with other contents)",
    ]
    other["data"] |= {"test": "/x.csv", "test_sha256": "x"}
    assert Changes(one, other).named[-1] == "--test (there none, now '/x.csv')"


def test_a_column_of_groups_and_chosen_targets_are_named():
    grouped, chosen = config(), config()
    grouped["data"] |= {"group_by": "Who", "targets": []}
    chosen["data"]["targets"] = ["Calm"]
    assert Changes(config(), grouped).named == ["--group-by (there none, now 'Who')"]
    assert Changes(config(), chosen).named == ["--targets (there ['Joy'], now ['Calm'])"]


def test_other_features_are_one_change_however_many_numbers_they_change():
    other, renamed, cut = config(), config(), config()
    made = other["features"]["fingerprint"] | {"backbone": "big", "weights_sha256": "3" * 64, "config_sha256": "4" * 64}
    other["features"] |= {"dim": 1024, "vad_names": ["arousal"], "hop_seconds": 0.02, "fingerprint": made}
    other["data"]["caches"] = ["/b.zarr"]
    renamed["features"]["fingerprint"]["backbone"] = "a folder of another name"
    cut["features"]["fingerprint"]["max_seconds"] = 6.0
    assert Changes(config(), other).named == [
        "--cache (/a.zarr there, /b.zarr now: its features are others, backbone (stored silero, wanted big))"
    ]
    assert not Changes(config(), renamed)
    assert Changes(config(), cut).named == [
        "--cache (/a.zarr: its features are others, max_seconds (stored 12.0, wanted 6.0))"
    ]


def test_a_run_of_an_older_version_lacks_keys_and_is_the_same():
    old = config()
    for key in ("ema", "stop_after", "augment", "versions"):
        del old[key]
    del old["lstm"]["global_vector"]
    assert not Changes(old, config())
    assert Changes(old, config(resolve_settings(ema=0.9))).named == ["--set ema (there 0.0, now 0.9)"]


@pytest.mark.parametrize(
    ("there", "now", "named"),
    [
        ({}, {"kind": "seeds"}, "what is trained (there 'one run', now 'runs of several --seeds')"),
        ({"kind": "folds", "folds": 3}, {"kind": "folds", "folds": 5}, "--folds (there 3, now 5)"),
        ({"kind": "ensemble", "weights": [1]}, {"kind": "ensemble", "weights": [2]}, "--weights (there [1], now [2])"),
    ],
)
def test_protocols_are_named_by_their_options(there, now, named):
    assert Changes(config(protocol=there), config(protocol=now)).named == [named]


def tuned(**more: Any) -> dict[str, Any]:
    """The config.toml of a fine-tuned run."""
    made = {"weights_sha256": "1", "config_sha256": "2", "precision": "fp32", "max_seconds": 12.0}
    backbone = {"source": "silero", "name": "silero", "fingerprint": made}
    found = config(finetune=FinetuneSettings(**more).to_toml(), backbone=backbone)
    found["data"]["audio_sha256"] = "a"
    return {key: value for key, value in found.items() if key != "features"}


def test_fine_tuning_names_its_own_options_and_not_the_sound_that_follows():
    assert Changes(tuned(), tuned(freeze="none", lora=0)).named == ["--freeze (there 'cnn', now 'none')"]
    assert not Changes(tuned(), tuned(batch_seconds=5.0, checkpointing=True, processes=2))
    shorter, media, backbone, head = tuned(max_seconds=6.0), tuned(), tuned(), tuned()
    shorter["data"]["audio_sha256"] = media["data"]["audio_sha256"] = "b"
    shorter["backbone"]["fingerprint"]["max_seconds"] = 6.0
    backbone["backbone"] |= {"source": "/ft", "fingerprint": {"weights_sha256": "9", "config_sha256": "8"}}
    head["backbone"]["head_sha256"] = "h"
    assert Changes(tuned(), shorter).named == ["--max-seconds (there 12.0, now 6.0)"]
    assert Changes(tuned(), media).named == ["--media (the sound of its clips is other than it was)"]
    assert Changes(tuned(), backbone).named == ["--backbone (there 'silero', now '/ft')"]
    assert Changes(tuned(), config()).named == ["what is trained (there 'a backbone too', now 'a head')"]
    assert Changes(tuned(), head).named == ["--init-head (there 'none', now 'a head')"]


def test_faces_at_the_times_of_videos_are_another_run_than_at_a_rate():
    def faces(**more: Any) -> dict[str, Any]:
        return tuned() | {"finetune": FinetuneSettings(**more).to_toml("face")}

    assert not Changes(faces(videos="a"), faces(videos="b"))
    assert Changes(faces(videos="a"), faces()).named == ["--fps (there 'native', now 6.0)"]
    other = faces(videos="b")
    other["data"] = other["data"] | {"crops_sha256": "c"}
    assert Changes(faces(videos="a"), other).named == ["--media (the faces of its clips, or their times, are others)"]


def test_every_option_that_is_named_is_one_of_the_command_line():
    group = typer.main.get_command(app)
    known = {p.name for name in ("train-head", "finetune") for p in group.commands[name].params}
    assert known >= OPTIONS
    settings = {f.name for kind in (TrainSettings, FinetuneSettings) for f in fields(kind)}
    places = {key.partition(".")[2] for key in NOT_COMPARED}
    assert (known & settings) - places <= OPTIONS


def test_what_nobody_knows_is_named_by_its_place():
    assert Changes(config(), config(later={"key": 1})).named == ["later.key (there none, now 1)"]


def test_a_sweep_names_what_changed_in_its_space_and_its_options():
    drawn = {"lr": {"name": "FloatDistribution", "attributes": {"low": 0.1, "high": 1.0, "log": True, "step": None}}}
    base = {"features": "f", "train_sha256": "t", "sampler": "tpe", "group_by": None}
    one = base | {"space": {"drawn": drawn, "fixed": {}, "base": {"epochs": 3}, "config": {}}}
    other = copy.deepcopy(one) | {"sampler": "random", "train_sha256": "u"}
    other["space"]["drawn"]["lr"]["attributes"]["high"] = 2.0
    other["space"]["base"] = {"epochs": 5}
    assert list(sweep_changes(one, other)) == [
        "--train (its contents are others)",
        "--sampler (there 'tpe', now 'random')",
        "lr in --space (there '0.1 to 1.0, log', now '0.1 to 2.0, log')",
        "--epochs (there 3, now 5)",
    ]


def test_jobs_that_start_together_make_one_folder(tmp_path):
    """The same job is welcome, and of different ones all but one hear whose folder it is."""
    errors: list[Exception] = []
    files: set[tuple[str, int]] = set()

    def prepare(number: int) -> None:
        try:
            folder = tmp_path / f"run-{number % 5}"
            prepare_folder(folder, config(resolve_settings(seed=number // 25)))
            files.add((folder.name, (folder / "config.toml").stat().st_ino))
        except RunFolderError as error:
            errors.append(error)

    threads = [threading.Thread(target=prepare, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for folder in tmp_path.iterdir():
        assert [path.name for path in folder.iterdir()] == ["config.toml"]
        assert read_config_file(folder)["seed"] in (0, 1)
    assert len(files) == 5  # nobody's was replaced, which may be locked
    assert errors
    assert all("--seed (there" in str(error) for error in errors)


def test_a_folder_that_a_killed_job_left_half_made_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml.12-ab.tmp").write_text("half")
    prepare_folder(tmp_path / "run", config())
    with pytest.raises(RunFolderError, match=r"--lr \(there 0.0001, now 0.01\)"):
        prepare_folder(tmp_path / "run", config(resolve_settings(lr=0.01)))
