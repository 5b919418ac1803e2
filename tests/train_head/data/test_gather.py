"""From caches and label files to splits of several streams, and of labels per frame."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cache.format import Clip, Header
from cache.writer import CacheWriter
from train_head.data.frame_labels import read_frame_labels
from train_head.data.gather import gather, open_stores, resolve_splits
from train_head.data.labels import read_labels
from train_head.data.names import UNNAMED, by_stream
from train_head.data.splits import lacking_streams
from train_head.errors import LabelError, TrainSettingsError
from train_head.runs.inputs import LabelFiles, gather_inputs


def write_cache(path, clips: dict[str, int], dim: int = 2, hop: float = 0.5):
    header = Header(fingerprint={"backbone": path.stem, "dtype": "float32"}, dim=dim, hop_seconds=hop)
    with CacheWriter(path, header) as writer:
        for number, (name, rows) in enumerate(clips.items()):
            writer.add(Clip(name, np.full((rows, dim), number + 1, np.float32), None, None, rows * hop))
    return path


@pytest.fixture
def caches(tmp_path):
    return {
        "audio": [write_cache(tmp_path / "audio.zarr", {"00001": 4, "00002": 6})],
        "face": [write_cache(tmp_path / "face.zarr", {"00002": 2, "00003": 3}, dim=3, hop=1.0)],
    }


def load(caches, labels, **options):
    stores = open_stores(caches)
    labels = resolve_splits(stores, {"train": labels})
    return gather(stores, labels, **options)["train"]


def clip_labels(tmp_path, names):
    path = tmp_path / "labels.csv"
    path.write_text("Filename,Joy\n" + "".join(f"{name},0.5\n" for name in names))
    return read_labels(path)


@pytest.mark.parametrize("shared", [False, True])
def test_streams_are_joined_by_id_and_a_clip_that_lacks_one_is_used(caches, tmp_path, shared):
    split = load(caches, clip_labels(tmp_path, [3, 2, 1]), shared=tmp_path / "map" if shared else None)
    assert split.labels.ids == ("00003", "00002", "00001")
    assert split.streams["audio"].lengths.tolist() == [0, 6, 4]
    assert split.streams["face"].lengths.tolist() == [3, 2, 0]
    batch = split.batch([0, 1, 2])
    assert batch.streams["audio"].frames[:, 0, 0].tolist() == [0, 2, 1]
    assert batch.streams["face"].frames[:, 0, 2].tolist() == [2, 1, 0]


def test_a_clip_that_every_stream_lacks_is_refused_or_left_out(caches, tmp_path):
    labels = clip_labels(tmp_path, [1, 2, 4])
    with pytest.raises(LabelError, match=r"1 of the 3 clips .* are not in .*audio\.zarr and .*face\.zarr \(first: 4\)"):
        load(caches, labels)
    assert load(caches, labels, skip_missing=True).labels.ids == ("00001", "00002")


def test_a_clip_that_lacks_a_required_stream_is_refused_or_left_out(caches, tmp_path):
    labels = clip_labels(tmp_path, [1, 2, 3])
    with pytest.raises(
        LabelError,
        match=r"1 of the 3 clips .* are not in .*face\.zarr, the required stream 'face' \(first: 1\); .*--skip-missing",
    ):
        load(caches, labels, require=("face",))
    assert load(caches, labels, require=("face",), skip_missing=True).labels.ids == ("00002", "00003")
    assert load(caches, labels, require=("face", "audio"), skip_missing=True).labels.ids == ("00002",)
    with pytest.raises(TrainSettingsError, match="unknown stream to require 'fase'; did you mean 'face'"):
        load(caches, labels, require=("fase",))


def test_all_clips_that_lack_a_required_stream_are_named_at_once(caches, tmp_path):
    header = Header(fingerprint={"backbone": "f", "dtype": "float32"}, dim=3, hop_seconds=0.1, optional=("valid",))
    with CacheWriter(tmp_path / "found.zarr", header) as writer:
        for i in (1, 2):
            writer.add(Clip(f"{i:05d}", np.zeros((2, 3), np.float32), None, None, 0.2, valid=np.full(2, i == 2)))
    stores = caches | {"found": [tmp_path / "found.zarr"]}
    labels = clip_labels(tmp_path, [1, 2, 3])
    with pytest.raises(LabelError) as caught:
        load(stores, labels, require=("found", "face"))
    for part in (
        r"found\.zarr, the required stream 'found' \(first: 3\); ",
        r"face\.zarr, the required stream 'face' \(first: 1\); ",
        r"; nothing was found of the required stream 'found' in 1 of the 3 clips of .*labels\.csv \(first: 1\); ",
    ):
        assert re.search(part, str(caught.value))


def test_the_clips_that_lack_a_stream_are_counted(caches, tmp_path):
    splits = {
        "train": load(caches, clip_labels(tmp_path, [1, 2, 3])),
        "valid": load(caches, clip_labels(tmp_path, [2, 3])),
    }
    assert lacking_streams(splits) == [
        "1 of 3 clips of train, 1 of 2 clips of valid lack the stream 'audio', for which a learned vector stands",
        "1 of 3 clips of train, 0 of 2 clips of valid lack the stream 'face', for which a learned vector stands",
    ]
    assert lacking_streams({"train": load(caches, clip_labels(tmp_path, [2]))}) == []
    audio = {UNNAMED: caches["audio"]}
    assert lacking_streams({"train": load(audio, clip_labels(tmp_path, [1]))}) == []


def test_a_stream_that_has_none_of_the_clips_is_refused(caches, tmp_path):
    with pytest.raises(LabelError, match=r"the stream 'face' .*look like '00002'.* has none of the 1 clips"):
        load(caches, clip_labels(tmp_path, [1]))


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "00002.txt").write_text("v\n" + "".join(f"0.{i}\n" for i in range(9)))
    return folder


def test_label_rows_take_the_rows_that_hold_at_their_time(caches, frames):
    split = load(caches, read_frame_labels(frames), fps=3.0)
    assert split.at["audio"].tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5]
    assert split.at["face"].tolist() == [0, 0, 0, 1, 1, 1, -1, -1, -1]


def test_times_and_frame_numbers_of_a_table_are_used(caches, tmp_path):
    path = tmp_path / "frames.csv"
    path.write_text("Filename,time,v\n2,0,0.5\n2,1.2,0.5\n2,9,\n")
    assert load(caches, read_frame_labels(path)).at["audio"].tolist() == [0, 2, -1]
    path.write_text("Filename,time,v\n2,0,0.5\n2,1.2,0.5\n2,9,0.5\n")
    with pytest.raises(LabelError, match=r"1 of the 3 labelled rows .* no stream has features; .*--max-seconds none"):
        load(caches, read_frame_labels(path))
    path.write_text("Filename,frame,v\n2,0,0.5\n2,5,0.5\n")
    assert load(caches, read_frame_labels(path), fps=2.0).at["audio"].tolist() == [0, 5]


def test_without_times_and_a_rate_the_label_rows_have_no_place(caches, frames):
    with pytest.raises(LabelError, match=r"does not say when its rows are; give --label-fps") as error:
        load(caches, read_frame_labels(frames))
    assert "native" not in str(error.value), "extract has no such option"


def test_caches_are_named_all_or_none(tmp_path):
    assert by_stream("a.zarr") == {UNNAMED: ["a.zarr"]}
    assert by_stream(["a.zarr", "b.zarr"]) == {UNNAMED: ["a.zarr", "b.zarr"]}
    assert by_stream(["face=a.zarr", "face=b.zarr", "audio=c.h5"]) == {"face": ["a.zarr", "b.zarr"], "audio": ["c.h5"]}
    assert by_stream({"face": "a.zarr"}) == {"face": ["a.zarr"]}
    for caches in (["face=a.zarr", "audio=c.h5"], {"face": "a.zarr", "audio": "c.h5"}):
        assert list(by_stream(caches)) == ["audio", "face"], "in another order a head would read others' vectors"
    with pytest.raises(TrainSettingsError, match=r"a\.zarr has no name, and others are called face"):
        by_stream(["a.zarr", "face=b.zarr"])
    with pytest.raises(TrainSettingsError, match="no cache is given"):
        by_stream([])
    with pytest.raises(TrainSettingsError, match="no cache is given; name one"):
        by_stream({})
    with pytest.raises(TrainSettingsError, match="no cache is given for the stream 'audio'"):
        by_stream({"audio": [], "face": "a.zarr"})


@pytest.mark.parametrize("name", ["Audio", "2d", "my-sound", "", "a b"])
def test_a_name_that_no_stream_can_have_is_named_where_the_path_behind_it_exists(tmp_path, name):
    place = tmp_path / "snd.zarr"
    place.mkdir()
    with pytest.raises(TrainSettingsError, match=f"snd.zarr: '{name}' cannot name a stream: .* begins with a letter"):
        by_stream([f"{name}={place}"])
    assert by_stream([f"{name}={place}x"]) == {UNNAMED: [f"{name}={place}x"]}
    (tmp_path / f"{name}=snd.zarr").mkdir()
    assert by_stream([str(tmp_path / f"{name}=snd.zarr")]) == {UNNAMED: [str(tmp_path / f"{name}=snd.zarr")]}


def test_a_path_with_an_equals_sign_that_exists_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_cache(tmp_path / "seed=1.zarr", {"a": 1})
    assert by_stream("seed=1.zarr") == {UNNAMED: ["seed=1.zarr"]}


def test_clips_that_share_a_source_are_linked_to_it(tmp_path):
    audio = write_cache(tmp_path / "audio.zarr", {"talk": 4, "walk": 6})
    face = write_cache(tmp_path / "face.zarr", {"talk_left": 2, "talk_right": 3, "walk": 1}, dim=3)
    for split in ("train", "valid"):
        (tmp_path / f"{split}.csv").write_text("Filename,Joy\ntalk_left,0.1\ntalk_right,0.5\nwalk,0.9\n")
    files = LabelFiles.named(tmp_path / "train.csv", tmp_path / "valid.csv", ids=["aff-wild2"])
    split = gather_inputs({"audio": audio}, files).splits["train"]
    assert split.only.lengths.tolist() == [4, 4, 6]
    assert split.batch([0, 1, 2]).streams["audio"].frames[:, 0, 0].tolist() == [1, 1, 2]
    files = replace(files, ids=("audio=(.+?)(?:_left|_right)?",))
    split = gather_inputs({"audio": audio, "face": face}, files, shared=tmp_path / "map").splits["train"]
    assert split.streams["audio"].lengths.tolist() == [4, 4, 6]
    assert split.streams["face"].lengths.tolist() == [2, 3, 1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("affwild", "takes NAME=REGEX or one of aff-wild2"),
        ("audio=(", "is no regular expression"),
        ("audio=.*", "one group in parentheses"),
        ("sound=(.*)", "the streams are audio"),
    ],
)
def test_wrong_links_are_refused(tmp_path, ids, message):
    audio = write_cache(tmp_path / "audio.zarr", {"1": 4})
    (tmp_path / "train.csv").write_text("Filename,Joy\n1,0.1\n")
    with pytest.raises(TrainSettingsError, match=message):
        gather_inputs({"audio": audio}, LabelFiles.named(tmp_path / "train.csv", ids=[ids]))
