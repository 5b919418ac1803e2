"""A head on two streams predicts media: the two audio tracks of a file, of which some files have one."""

import csv
from fractions import Fraction

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from emi.cli import app
from emi.prediction import Models, UnreadableMediaError
from extract.failures import Failure

NAMES = ("first", "second")


def write_tracks(path, tracks: int, seed: int):
    """Noise of 0.6 s in each audio track."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(tracks)]
        for stream in streams:
            frame = av.AudioFrame.from_ndarray(
                (3000 * rng.normal(size=(1, 9600))).astype(np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            out.mux([*stream.encode(frame), *stream.encode()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Caches of both tracks of eight files, a run on them, and media: with two tracks, with one, and with none."""
    folder = tmp_path_factory.mktemp("tracks")
    (folder / "clips").mkdir()
    (folder / "media").mkdir()
    for i in range(8):
        write_tracks(folder / "clips" / f"{i}.mkv", 2, seed=i)
    for track, name in enumerate(NAMES, 1):
        emi.extract(folder / "clips", folder / f"{name}.zarr", track=track)
    for split, part in (("train", range(5)), ("valid", range(5, 8))):
        lines = "".join(f"{i},0.{i},0.{9 - i}\n" for i in part)
        (folder / f"{split}.csv").write_text(f"Filename,Joy,Calm\n{lines}")
    caches = {name: folder / f"{name}.zarr" for name in NAMES}
    emi.train_head(caches, folder / "train.csv", folder / "valid.csv", folder / "run", hidden=4, epochs=1)
    write_tracks(folder / "media" / "both.mkv", 2, seed=0)
    write_tracks(folder / "media" / "one.mkv", 1, seed=0)
    (folder / "media" / "none.mkv").write_bytes(b"")
    return folder


def test_a_clip_is_predicted_by_the_streams_that_can_be_computed(trained):
    model = emi.load(trained / "run")
    results = {getattr(result, "id", None) or result["Filename"]: result for result in model.iterate(trained / "media")}
    assert isinstance(results["none"], Failure)
    assert "is empty" in results["none"].reason
    assert [(failure.id, failure.reason.split(": ")[0]) for failure in model.stream_failures] == [
        ("one", "stream 'second'")
    ]
    assert "has 1 audio track, and --track 2" in model.stream_failures[0].reason
    emi.extract(trained / "media" / "one.mkv", trained / "one.zarr", track=1)
    expected = model.trained.predict({"first": emi.open_cache(trained / "one.zarr")["one"], "second": None})
    np.testing.assert_allclose([results["one"]["Joy"], results["one"]["Calm"]], expected, atol=1e-5)
    ensemble = Models([model, emi.load(trained / "run")], [0.5, 0.5])
    mean = {record["Filename"]: record for record in ensemble.iterate(trained / "media") if isinstance(record, dict)}
    assert mean["one"]["Joy"] == pytest.approx(results["one"]["Joy"], abs=1e-6)
    assert [failure.id for failure in ensemble.stream_failures] == ["one"]
    assert list(model.predict([trained / "media" / "both.mkv"])[0]) == ["Filename", "Joy", "Calm"]
    assert model.stream_failures == []


def test_the_command_lists_the_streams_that_failed(trained, tmp_path):
    arguments = ["predict", trained / "media", "--model", trained / "run", "--csv", tmp_path / "p.csv"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    assert "clips predicted without a stream that could not be computed:\n" in done.output
    lines = [line.split(",", 1) for line in (tmp_path / "p.csv").read_text().splitlines()]
    assert [name for name, _ in lines] == ["Filename", "both", "none", "one"]
    assert [values == "," for _, values in lines] == [False, False, True, False]
    with (tmp_path / "failures.csv").open(newline="") as file:
        rows = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert rows.keys() == {"none", "one"}
    assert rows["one"].startswith("stream 'second': has 1 audio track")
    arguments[1] = trained / "media" / "one.mkv"
    assert CliRunner().invoke(app, [str(argument) for argument in arguments]).exit_code == 0


def test_a_clip_that_lacks_a_required_stream_is_not_predicted(trained, tmp_path):
    caches = {name: trained / f"{name}.zarr" for name in NAMES}
    files = (trained / "train.csv", trained / "valid.csv", tmp_path / "run")
    emi.train_head(caches, *files, hidden=4, epochs=1, require=["second"])
    model = emi.load(tmp_path / "run")
    results = {getattr(result, "id", None) or result["Filename"]: result for result in model.iterate(trained / "media")}
    assert isinstance(results["both"], dict)
    assert results["one"].reason.startswith("lacks the stream 'second', which the run requires: has 1 audio track")
    with pytest.raises(
        UnreadableMediaError, match=r"1 of 1 files cannot be read; the first, .*one\.mkv, lacks the stream"
    ):
        model.predict([trained / "media" / "one.mkv"])
    seeds = emi.train_head(caches, *files[:2], tmp_path / "seeds", hidden=4, epochs=1, require=["second"], seeds=2)
    (failure,) = emi.load(seeds.folder).iterate([trained / "media" / "one.mkv"])
    assert failure.reason == results["one"].reason
