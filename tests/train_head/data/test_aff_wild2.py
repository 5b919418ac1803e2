"""Aff-Wild2 as it lies on the disk: rows on the frames of the videos, what is not annotated, two people in a video."""

import re
import shutil

import numpy as np
import pytest
import torch

import emi
from cache import Clip, open_cache
from cache.writer import CacheWriter
from tests.train_head import affwild
from train_head.errors import LabelError
from train_head.losses import build_objective
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.settings import resolve_settings
from train_head.training.trainer import Trainer

QUICK = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 1, "lr": 1e-2, "batch_size": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return affwild.make(tmp_path_factory.mktemp("affwild"))


def inputs(data, train=None, valid=None, **options):
    form = resolve_settings(**affwild.SETTINGS).label_format()
    files = LabelFiles.named(train or data.train, valid or data.valid, format=form, ids=["aff-wild2"])
    return gather_inputs(data.caches, files, **options)


def test_each_label_row_has_the_frame_of_its_number_and_the_sound_of_that_moment(data):
    split = inputs(data).splits["train"]
    for clip, trial in enumerate(split.labels.ids):
        rows = split.labels.rows_of([clip])
        frames, fps = len(data.truth[trial]), affwild.TRAIN[trial]
        number = np.minimum(np.arange(len(rows)), frames - 1)
        assert split.at["face"][rows].tolist() == number.tolist()
        sound, found = number / fps / affwild.AUDIO_HOP, split.at["audio"][rows].numpy()
        assert ((np.floor(sound - 1e-3) <= found) & (found <= np.floor(sound + 1e-3))).all()


def test_rows_with_a_mark_in_either_column_are_masked_in_both(data):
    labels = inputs(data).splits["train"].labels
    for clip in range(len(labels)):
        values = labels.values[labels.rows_of([clip])]
        assert np.isnan(values[3:7]).all()
        assert not np.isnan(np.delete(values, range(3, 7), axis=0)).any()


def test_a_few_rows_more_or_less_than_frames_are_said(data):
    said = inputs(data).lacking
    assert said == [
        "train: label rows and frames of the video differ a little in 2 clips (first: 104-17-720x480: 32 rows of "
        "labels, 30 frames; 118-30-640x480: 119 rows of labels, 120 frames); label rows beyond the last frame belong "
        "to it",
        "valid: label rows and frames of the video differ a little in 1 clip (first: 201-30-640x480: 101 rows of "
        "labels, 100 frames); label rows beyond the last frame belong to it",
    ]


@pytest.mark.parametrize("more", [5, -5])
def test_many_rows_more_or_less_than_frames_are_an_error_with_both_numbers(data, tmp_path, more):
    train = tmp_path / "Train_Set"
    shutil.copytree(data.train, train)
    affwild.write_annotation(train, "2-30-640x360", data.truth["2-30-640x360"], more)
    with pytest.raises(LabelError, match=rf"1 clip \(first: 2-30-640x360: {100 + more} rows of labels, 100 frames\)"):
        inputs(data, train)


def test_a_rate_that_is_given_beats_the_frames(data):
    form = resolve_settings(**affwild.SETTINGS, label_fps=25.0).label_format()
    files = LabelFiles.named(data.train, data.valid, format=form, ids=["aff-wild2"])
    split = gather_inputs(data.caches, files).splits["train"]
    clip = split.labels.ids.index("104-17-720x480")
    face = split.at["face"][split.labels.rows_of([clip])]
    assert face[:8].tolist() == [0, 0, 0, 0, 1, 1, 1, 2]  # 7.5 frames a second


def test_two_people_of_one_video_share_its_sound_and_are_one_group(data):
    found = inputs(data)
    labels = found.splits["train"].labels
    left, right = (labels.ids.index(f"10-60-1280x720_{side}") for side in ("left", "right"))
    sounds = list(found.splits["train"].streams["audio"].chunks())
    assert torch.equal(sounds[left], sounds[right])
    assert labels.groups[left] == labels.groups[right] == "10-60-1280x720"
    assert len(set(labels.groups)) == len(labels) - 1
    with open_cache(data.caches["audio"]) as store:
        assert "10-60-1280x720_left" not in store.ids


def test_two_people_of_one_video_in_two_splits_are_refused(data, tmp_path):
    valid = tmp_path / "Validation_Set"
    shutil.copytree(data.valid, valid)
    train = tmp_path / "Train_Set"
    shutil.copytree(data.train, train)
    (train / "10-60-1280x720_right.txt").rename(valid / "10-60-1280x720_right.txt")
    how = QUICK | {"ids": ["aff-wild2"]}
    with pytest.raises(LabelError, match=r"1 of the 3 validation groups .*first: 10-60-1280x720\)"):
        emi.train_head(data.caches, train, valid, tmp_path / "run", **how)
    assert emi.train_head(data.caches, train, valid, tmp_path / "run", **how, group_by="(.+)").best_epoch == 1


@pytest.mark.parametrize("stored", [True, False])
def test_a_video_in_which_no_face_was_found_still_has_its_sound(data, tmp_path, stored):
    with open_cache(data.caches["face"]) as store, CacheWriter(tmp_path / "face.zarr", store.header) as writer:
        for trial in store.ids:
            clip = store[trial]
            if trial == "2-30-640x360" and not stored:  # an empty folder of images is no clip
                continue
            if trial == "2-30-640x360":
                nothing = np.zeros((1, 3), np.float32), None, None, 4.0, np.array([[0.0, 4.0]]), np.zeros(1, bool)
                clip = Clip(trial, *nothing)
            writer.add(clip)
    caches = data.caches | {"face": tmp_path / "face.zarr"}
    form = resolve_settings(**affwild.SETTINGS).label_format()
    found = gather_inputs(caches, LabelFiles.named(data.train, data.valid, format=form, ids=["aff-wild2"]))
    split = found.splits["train"]
    rows = split.labels.rows_of([split.labels.ids.index("2-30-640x360")])
    assert (split.at["face"][rows] == -1).all()
    assert split.at["audio"][rows].tolist() == list(range(100))
    assert "2 clips (first: 104-17" in " ".join(found.lacking), "its length is no number of frames"


def test_the_loss_is_taken_over_all_labelled_rows_of_a_batch_at_once(data):
    split = inputs(data).splits["train"]
    settings = resolve_settings(**QUICK, window=40, hop=20)
    trainer = Trainer(settings, split, None, None)
    samples = list(range(len(trainer.train.costs)))[:6]
    batch = trainer.train.batch(samples)
    trainer.predictor.eval()
    with torch.no_grad():
        outputs = trainer.predictor.outputs(batch.streams).double()
    known = ~batch.targets.isnan().any(dim=-1)
    assert 0 < (~known).sum() < known.numel()
    x, y = outputs[known].numpy(), batch.targets[known].double().numpy()
    spread = x.var(0) + y.var(0) + (x.mean(0) - y.mean(0)) ** 2
    expected = 1 - (2 * ((x - x.mean(0)) * (y - y.mean(0))).mean(0) / spread).mean()
    objective = build_objective(settings.loss, settings.weighting, split.targets)
    found = objective(outputs[known].float(), batch.targets[known])
    assert float(found) == pytest.approx(expected, abs=1e-5)


def test_what_stands_in_rows_that_are_not_annotated_changes_nothing(data, tmp_path):
    train = tmp_path / "Train_Set"
    shutil.copytree(data.train, train)
    for file in train.glob("*.txt"):
        file.write_text(re.sub(r"^-5,-5$", "-5,0.9", file.read_text(), flags=re.M))
    results = [
        emi.train_head(data.caches, labels, data.valid, tmp_path / name, **QUICK, ids=["aff-wild2"])
        for name, labels in (("as-it-is", data.train), ("changed", train))
    ]
    assert results[0].history[0]["train_loss"] == results[1].history[0]["train_loss"]
    np.testing.assert_array_equal(results[0].predictions["valid"], results[1].predictions["valid"])


def test_the_score_is_of_all_frames_together_and_the_intervals_are_by_video(data, tmp_path):
    result = emi.train_head(data.caches, data.train, data.valid, tmp_path / "run", **QUICK, ids=["aff-wild2"])
    labels = inputs(data).splits["valid"].labels
    for k, name in enumerate(labels.names):
        x, y = result.predictions["valid"][:, k].astype(np.float64), labels.values[:, k].astype(np.float64)
        x, y = x[~np.isnan(y)], y[~np.isnan(y)]
        ccc = 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        assert result.report.concordance[k] == pytest.approx(ccc, abs=1e-9), name
    assert "only 2 groups" in (tmp_path / "run" / "README.md").read_text()


def first_line_dropped(file):
    file.write_text("-5,-5\n" + file.read_text().split("\n", 2)[2])


def wrong(data, tmp_path, change):
    train = tmp_path / "Train_Set"
    shutil.copytree(data.train, train)
    change(train)
    return train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda train: (train / "999-30.txt").write_text("valence,arousal\n0,0\n"),
            r"1 of the 10 clips of .*Train_Set are not in .*\.zarr and .*\.zarr \(first: 999-30\); extract them .*"
            r"or give --skip-missing",
        ),
        (
            lambda train: (train / "7-60-1920x1080.txt").write_text("valence,arousal\n0.5,1.5\n"),
            r"7-60-1920x1080, frame 0: arousal is 1\.5, outside -1 to 1; mend it, or the range that was given",
        ),
        (
            lambda train: (train / "7-60-1920x1080.txt").write_text(""),
            r"7-60-1920x1080\.txt is empty; expected the names of the targets and a line per frame: copy the file "
            "again, or remove it",
        ),
        (
            lambda train: [first_line_dropped(file) for file in train.glob("*.txt")],
            r"1-30-1280x720\.txt, line 1: expected the names of the targets, such as valence,arousal, got '.*'; add ",
        ),
        (
            lambda train: (train / "0.txt").write_text(""),
            r"0\.txt is empty; expected the names of the targets and a line per frame",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(data, tmp_path, change, message):
    with pytest.raises(LabelError, match=message):
        inputs(data, wrong(data, tmp_path, change))


def test_a_file_without_rows_is_left_out_of_the_training_split_and_refused_elsewhere(data, tmp_path):
    def empty(folder):
        next(iter(sorted(folder.glob("*.txt")))).write_text("valence,arousal\n")

    assert inputs(data, wrong(data, tmp_path, empty)).labels["train"].unlabelled == 1
    valid = tmp_path / "Validation_Set"
    shutil.copytree(data.valid, valid)
    empty(valid)
    with pytest.raises(LabelError, match=r"201-30-640x480: 0 rows of labels, 100 frames"):
        inputs(data, valid=valid)


def test_a_header_in_another_order_gives_the_same_labels(data, tmp_path):
    def swap(train):
        file = train / "2-30-640x360.txt"
        rows = [",".join(reversed(line.split(","))) for line in file.read_text().splitlines()]
        file.write_text("\n".join([*rows, ""]))

    one, other = (inputs(data, train).splits["train"].labels for train in (data.train, wrong(data, tmp_path, swap)))
    assert one.names == other.names == ("valence", "arousal")
    np.testing.assert_array_equal(one.values, other.values)


def test_a_validation_split_whose_columns_are_in_another_order_is_scored_column_by_column(data, tmp_path):
    valid = tmp_path / "Validation_Set"
    shutil.copytree(data.valid, valid)
    for file in valid.glob("*.txt"):
        rows = [",".join(reversed(line.split(","))) for line in file.read_text().splitlines()]
        file.write_text("\n".join([*rows, ""]))
    one, other = (inputs(data, valid=place).splits["valid"].labels for place in (data.valid, valid))
    assert other.names == ("valence", "arousal")
    np.testing.assert_array_equal(one.values, other.values)


def test_more_folds_than_videos_are_refused(data, tmp_path):
    with pytest.raises(
        LabelError, match=r"20 folds need as many groups, and there are 10: .*; give fewer folds, or more"
    ):
        emi.train_head(data.caches, data.train, data.valid, tmp_path / "run", **QUICK, ids=["aff-wild2"], folds=20)
    assert not (tmp_path / "run").exists()
