"""A clip is predicted as the file of the run says: with its missing faces filled, smoothed, and centred."""

import numpy as np
import pytest

import emi
from cache import open_cache
from tests.train_head import affwild
from train_head.data.frame_labels import read_frame_labels
from train_head.errors import RunFolderError
from train_head.runs.label_rows import predict_label_rows
from train_head.runs.load import load_head, load_heads

QUICK = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 1, "lr": 1e-2, "batch_size": 4, "ids": ["aff-wild2"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return affwild.make(tmp_path_factory.mktemp("affwild"), seconds=2.0)


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """`six` folds with medians whose widths they chose, `centred`, and `plain`, which is not smoothed."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_head.reports.figures.draw_run", lambda *_: None)
        patch.setattr("train_head.reports.traces.draw_traces", lambda *_: None)
        files = (data.caches, data.train, data.valid)
        how = QUICK | {"missing": "nearest", "window": 20, "hop": 12, "test": data.root / "example.txt"}
        emi.train_head(*files, root / "six", **how, folds="official6", smooth="median")
        emi.train_head(*files, root / "plain", **how)
    emi.ensemble([root / "six"], root / "centred", centre=True)
    return root


@pytest.mark.parametrize("name", ["plain", "six/fold-3", "six", "centred"])
def test_it_is_what_the_run_wrote_of_its_test_split(data, runs, name):
    written, trained = read_frame_labels(runs / name / "predictions_test", check_range=False), load_head(runs / name)
    with open_cache(data.caches["face"]) as faces, open_cache(data.caches["audio"]) as sounds:
        for number, trial in enumerate(written.ids):
            clips = {"face": faces[trial], "audio": sounds[affwild.video_of(trial)]}
            found = predict_label_rows(trained, clips)
            np.testing.assert_allclose(found, written.values[written.rows_of([number])], atol=1e-5)


def test_the_folds_chose_widths_of_their_own_and_predict_on_the_same_features(runs):
    ((head, weight),) = load_heads(runs / "six")
    assert weight == pytest.approx(1)
    assert len(head.smoothing) == 6
    assert len({str(one.half_widths) for one in head.smoothing}) > 1


def test_centred_runs_within_another_mean_cannot_be_predicted(runs, tmp_path):
    (tmp_path / "both").mkdir()
    members = f'members = ["{runs / "centred"}", "{runs / "plain"}"]\nkind = "ensemble"\n'
    (tmp_path / "both" / "ensemble.toml").write_text(members)
    with pytest.raises(RunFolderError, match=r"lists .*centred, whose runs are centred before their mean"):
        load_heads(tmp_path / "both")
