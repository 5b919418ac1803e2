"""Caches whose rows have times of their own, and rows in which nothing was found."""

import numpy as np
import pytest

from cache import Clip, Header, StaleCacheError, open_cache
from cache.writer import CacheWriter
from train_head.data.gather import gather
from train_head.data.names import UNNAMED
from train_head.errors import LabelError
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.runs.load import load_head
from train_head.runs.train import train_run
from train_head.training.settings import resolve_settings

SMALL = {"epochs": 2, "batch_size": 4, "hidden": 8, "precision": "fp32", "device": "cpu", "standardise": True}
CLIPS = [f"{i:05d}" for i in range(12)]
NOTHING = CLIPS[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """`marked` has rows without a face and one clip without any; `kept` has the other rows of the same; `audio` all."""
    folder = tmp_path_factory.mktemp("valid")
    rng = np.random.default_rng(0)
    face, audio = ({"backbone": name, "dtype": "float32"} for name in ("face", "audio"))
    headers = {
        "marked": Header(fingerprint=face, dim=3, hop_seconds=None, optional=("times", "valid")),
        "kept": Header(fingerprint=face, dim=3, hop_seconds=0.1),
        "audio": Header(fingerprint=audio, dim=2, hop_seconds=0.1),
    }
    clips: dict[str, list[Clip]] = {name: [] for name in headers}
    for clip in CLIPS:
        rows = int(rng.integers(8, 20))
        frames, valid = rng.normal(3, 2, (rows, 3)).astype(np.float32), rng.random(rows) < 0.6
        valid[0] = True
        if clip == NOTHING:
            valid[:] = False
        times = np.stack([np.arange(rows), np.arange(1, rows + 1)], axis=1) * 0.1
        clips["marked"].append(Clip(clip, frames, None, None, rows / 10, times, valid))
        if clip != NOTHING:
            clips["kept"].append(Clip(clip, frames[valid], None, None, rows / 10))
        clips["audio"].append(Clip(clip, rng.normal(size=(rows, 2)).astype(np.float32), None, None, rows / 10))
        (folder / "frames").mkdir(exist_ok=True)
        values = "\n".join(f"{v:.3f}" for v in rng.random(rows))
        (folder / "frames" / f"{clip}.txt").write_text(f"arousal\n{values}\n")
    for name, header in headers.items():
        with CacheWriter(folder / f"{name}.zarr", header) as writer:
            for one in clips[name]:
                writer.add(one)
    for split, part in (("train", CLIPS[:8]), ("valid", CLIPS[8:])):
        lines = [f"{clip},{rng.random():.3f}" for clip in part]
        (folder / f"{split}.csv").write_text("Filename,Joy\n" + "\n".join(lines) + "\n")
    return folder


def run(data, caches, out, **settings):
    files = LabelFiles.named(data / "train.csv", data / "valid.csv", skip_missing=True)
    return train_run(gather_inputs(caches, files), out, resolve_settings(**(SMALL | settings)))


@pytest.mark.parametrize("head", ["lstm", "mean", "attention"])
def test_rows_without_anything_are_as_if_they_were_not_there(data, tmp_path, head):
    """The clips, without the one of which nothing is valid, that a fused head learns from two streams."""
    settings = {"face.head": head, "audio.head": "mean"} | ({} if head == "mean" else {"face.hidden": 4})
    for name in ("marked", "kept"):
        run(data, {"audio": data / "audio.zarr", "face": data / f"{name}.zarr"}, tmp_path / name, **settings)
    one, other = ((tmp_path / name / "predictions_valid.csv").read_bytes() for name in ("marked", "kept"))
    assert one == other
    one, other = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("marked", "kept"))
    assert one == other


def test_one_stream_predicts_a_clip_without_anything_from_a_row_of_zeros(data, tmp_path):
    run(data, data / "marked.zarr", tmp_path / "run")
    head = load_head(tmp_path / "run")
    stream = head.only
    assert (stream.header.hop_seconds, stream.header.optional) == (None, ("times", "valid"))
    with open_cache(data / "marked.zarr") as store:
        mean = head.head.standardise.mean.numpy()[None]  # which standardises to zeros
        average = Clip("x", mean, None, None, 0.1, np.array([[0, 0.1]]), np.array([True]))
        np.testing.assert_allclose(head.predict(store[NOTHING]), head.predict(average), atol=1e-6)
        lines = (tmp_path / "run" / "predictions_valid.csv").read_text().splitlines()[1:]
        cached = dict(line.split(",") for line in lines)
        for clip in CLIPS[8:]:
            np.testing.assert_allclose(head.predict(store[clip]), float(cached[clip]), atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_labels_per_frame_take_their_clock_from_rows_with_times_and_mark_rows(data, tmp_path, shared):
    with open_cache(data / "marked.zarr") as store:
        labels = LabelFiles.named(data / "frames").read()
        split = gather({UNNAMED: [store]}, labels, shared=tmp_path / "map" if shared else None)["train"]
        batch = split.batch(range(len(split))).streams[UNNAMED]
        for i, clip in enumerate(split.labels.ids):
            stored, rows = store[clip], len(store[clip].frames)
            if clip == NOTHING:
                assert batch.lengths[i] == 1 or batch.lengths[i] == 0
                assert (batch.at[i] == -1).all()
                continue
            assert batch.lengths[i] == rows
            np.testing.assert_array_equal(batch.valid[i, :rows], stored.valid)
            np.testing.assert_array_equal(batch.at[i, :rows], np.arange(rows))
            assert not batch.frames[i, :rows][~batch.valid[i, :rows]].any()


def test_labels_per_frame_are_learnt_with_marks_of_rows(data, tmp_path):
    files = LabelFiles.named(data / "frames", data / "frames")
    settings = resolve_settings(**(SMALL | {"head": "gru", "loss": "ccc", "window": 6, "hop": 3}))
    result = train_run(gather_inputs(data / "marked.zarr", files), tmp_path / "run", settings)
    assert np.isfinite([record["train_loss"] for record in result.history]).all()
    assert len(list((tmp_path / "run" / "predictions_valid").iterdir())) == len(CLIPS)


def test_caches_of_one_stream_have_the_same_arrays(data, tmp_path):
    header = Header(fingerprint={"backbone": "face", "dtype": "float32"}, dim=3, hop_seconds=0.1)
    with CacheWriter(tmp_path / "more.zarr", header) as writer:
        writer.add(Clip("99999", np.ones((2, 3), np.float32), None, None, 0.2))
    files = LabelFiles.named(data / "train.csv", data / "valid.csv")
    for caches in ([data / "marked.zarr", tmp_path / "more.zarr"], [tmp_path / "more.zarr", data / "marked.zarr"]):
        with pytest.raises(StaleCacheError, match="times, valid"):
            gather_inputs(caches, files)


def test_a_stream_in_which_nothing_was_found_is_refused(data, tmp_path):
    header = Header(fingerprint={"backbone": "face", "dtype": "float32"}, dim=3, optional=("valid",))
    with CacheWriter(tmp_path / "none.zarr", header) as writer:
        for clip in CLIPS:
            writer.add(Clip(clip, np.zeros((1, 3), np.float32), None, None, 1.0, None, np.array([False])))
    files = LabelFiles.named(data / "train.csv", data / "valid.csv")
    with pytest.raises(LabelError, match="nothing was found in any of the clips of the stream 'face'"):
        gather_inputs({"audio": data / "audio.zarr", "face": tmp_path / "none.zarr"}, files)
