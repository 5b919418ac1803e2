"""Rows in which no face was found: masked, or the nearest row with a face in their place."""

import numpy as np
import torch

import emi
from cache import Clip, open_cache
from cache.writer import CacheWriter
from tests.train_head import affwild
from train_head.data.streams import Stream

QUICK = affwild.SETTINGS | {"head": "gru", "hidden": 4, "epochs": 1, "lr": 1e-2, "batch_size": 4, "ids": ["aff-wild2"]}


def test_the_nearest_valid_row_of_the_same_clip_takes_the_place_and_of_two_the_earlier():
    valid = torch.tensor([False, True, False, False, False, True, False, False, True, True, False])
    rows = torch.arange(11)[:, None].float()
    starts, lengths = torch.tensor([0, 6, 8]), torch.tensor([6, 2, 3])
    stream = Stream("face", rows, starts, lengths, hop=0.1, valid=valid)
    filled = stream.filled()
    assert filled.index.tolist() == [1, 1, 1, 1, 5, 5, 6, 7, 8, 9, 9]
    assert filled.filled().index.tolist() == filled.index.tolist()
    assert Stream("face", rows, starts, lengths).filled().index is None


def test_features_that_were_filled_before_give_the_same_run(tmp_path):
    data = affwild.make(tmp_path / "data")
    with open_cache(data.caches["face"]) as store, CacheWriter(tmp_path / "filled.zarr", store.header) as writer:
        for trial in store.ids:
            clip = store[trial]
            known = np.flatnonzero(clip.valid)
            nearest = [known[np.argmin(np.abs(known - row))] for row in range(len(clip.valid))]
            frames = np.asarray(clip.frames)[nearest]
            writer.add(Clip(trial, frames, None, None, clip.seconds, clip.times, np.ones(len(frames), bool)))
    files = (data.train, data.valid)
    test = data.root / "example.txt"
    nearest = emi.train_head(data.caches, *files, tmp_path / "a", test=test, **QUICK, missing="nearest")
    filled = emi.train_head(
        data.caches | {"face": tmp_path / "filled.zarr"}, *files, tmp_path / "b", test=test, **QUICK
    )
    masked = emi.train_head(data.caches, *files, tmp_path / "c", test=test, **QUICK)
    for split in ("valid", "test"):
        np.testing.assert_array_equal(nearest.predictions[split], filled.predictions[split])
        assert not np.array_equal(nearest.predictions[split], masked.predictions[split])
    assert 'missing = "nearest"' in (tmp_path / "a" / "config.toml").read_text()
    assert "missing" not in (tmp_path / "c" / "config.toml").read_text()
