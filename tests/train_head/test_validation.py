"""What does not go together is refused before features are read or anything is written."""

import pytest

import emi
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols import train
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.settings import resolve_settings
from train_head.validation import Validation


def test_a_run_folder_is_asked_for_before_features_are_read(labelled):
    with pytest.raises(RunFolderError, match="give out="):
        emi.train_head("none.zarr", labelled / "train.csv", labelled / "valid.csv")


@pytest.mark.parametrize(("settings", "message"), [({"seeds": 0}, "1 or more, got 0"), ({"folds": 2}, "--folds")])
def test_an_ablation_takes_seeds_and_no_folds(labelled, tmp_path, settings, message):
    with pytest.raises(TrainSettingsError, match=message):
        emi.ablate("none.zarr", labelled / "train.csv", labelled / "valid.csv", tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_groups_that_the_labels_were_read_without_are_refused(labelled, labelled_cache, tmp_path):
    inputs = gather_inputs(labelled_cache, LabelFiles.named(labelled / "train.csv", labelled / "valid.csv"))
    with pytest.raises(TrainSettingsError, match=r"read without the groups of 'Who'"):
        train(inputs, tmp_path / "run", resolve_settings(), Validation(folds=2, group_by="Who"))
    assert not (tmp_path / "run").exists()
