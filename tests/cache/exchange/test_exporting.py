"""Exports hold what the cache holds, bit for bit, as the tools that they are for read them."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cache import CacheWriter, Clip, Header, open_cache
from cache.exchange.exporting import KINDS, export
from cache.exchange.feature_files import FeatureFileError
from cache.exchange.importing import import_features
from cache.exchange.selection import ExportError, ExportExistsError, Selection, read_manifest

IDS = ["train/клип/один", "train/00001", "日本語", "z", "train/a b.c", "Ünï/ço∂é/🎭"]
SOME = ["z", "train/00001"]
ONE = pytest.mark.parametrize("filled", [".h5"], indirect=True)
"""One container will do where the other could make no difference."""


@pytest.fixture(scope="module", params=[".zarr", ".h5"])
def container(request):
    return request.param


@pytest.fixture(scope="module", params=[(True, "float16"), (False, "float32")], ids=["vad-float16", "float32"])
def store(request, container, tmp_path_factory):
    """Clips of 1 to 6 frames in segments of two, in both containers, with and without VAD."""
    vad, dtype = request.param
    header = Header(fingerprint={"layer": 12, "dtype": dtype}, dim=4, vad_names=("a", "d", "v") if vad else ())
    place = tmp_path_factory.mktemp("store") / f"features{container}"
    rng = np.random.default_rng(5)
    with CacheWriter(place, header, segment_bytes=70) as writer:
        for length, clip_id in enumerate(IDS, 1):
            frames, vads = (rng.normal(size=(length, n)).astype(np.float32) for n in (4, 3))
            writer.add(Clip(clip_id, frames, *((vads, vads.mean(0)) if vad else (None, None)), length * 0.02 + 0.01))
    with open_cache(place) as opened:
        yield opened


@pytest.fixture
def one(filled):
    with open_cache(filled) as opened:
        yield opened


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def out(tmp_path):
    return tmp_path / "folder" / "out"


def read_npz(out, ids):
    clips = {}
    for file in out.rglob("*.npz"):
        with np.load(file) as arrays:
            clip_id = file.relative_to(out).as_posix().removesuffix(".npz")
            assert arrays["seconds"].shape == ()
            clips[clip_id] = Clip(
                clip_id, arrays["frames"], arrays.get("vad"), arrays.get("vad_pooled"), float(arrays["seconds"])
            )
    return [clips[clip_id] for clip_id in ids if clip_id in clips]


def read_parquet(out, _):
    table = pq.read_table(out)
    dtype = table.schema.field("frames").type.value_type.value_type.to_pandas_dtype()

    def array(value, dtype):
        return None if value is None else np.array(value, dtype)

    rows = table.to_pylist()
    assert [row["num_frames"] for row in rows] == [len(row["frames"]) for row in rows]
    return [
        Clip(
            row["id"],
            array(row["frames"], dtype),
            array(row.get("vad"), np.float32),
            array(row.get("vad_pooled"), np.float32),
            row["seconds"],
        )
        for row in rows
    ]


def read_datasets(out, _):
    rows = datasets.load_from_disk(out)
    dtype = rows.features["frames"].dtype
    rows = rows.with_format("numpy")
    return [
        Clip(row["id"], row["frames"].astype(dtype), row.get("vad"), row.get("vad_pooled"), float(row["seconds"]))
        for row in (rows[i] for i in range(len(rows)))
    ]


READ = {"npz": read_npz, "parquet": read_parquet, "datasets": read_datasets}


@pytest.mark.parametrize("kind", READ)
def test_every_clip_comes_out_bit_for_bit_in_its_order(store, kind, out, record):
    summary = export(store, out, kind)
    assert (summary.path, summary.written, summary.present) == (str(out), len(store), 0)
    clips = READ[kind](out, store.ids)
    assert [(clip.id, record(clip)) for clip in clips] == [(clip_id, record(store[clip_id])) for clip_id in store]


def test_numpy_arrays_can_be_mapped_and_hold_every_clip(store, out):
    export(store, out, "npy")
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "frames.npy", "ids.txt", "offsets.npy"]
    frames = np.load(out / "frames.npy", mmap_mode="r")
    offsets = np.load(out / "offsets.npy")
    assert isinstance(frames, np.memmap)
    assert frames.dtype == store.header.dtype
    assert offsets.dtype == np.int64
    ids = (out / "ids.txt").read_text(encoding="utf-8").splitlines()
    assert ids == store.ids
    for i, clip_id in enumerate(ids):
        joined = store[clip_id].joined()
        assert frames[offsets[i] : offsets[i + 1]].tobytes() == joined.tobytes()
    assert len(frames) == offsets[-1] == store.num_frames.sum()
    assert frames.shape[1] == store.dim + len(store.vad_names)


def manifest_in(out, kind):
    if kind == "parquet":
        metadata = pq.read_metadata(out).metadata
        assert json.loads(metadata[b"fingerprint"]) == json.loads(metadata[b"emi_export"])["fingerprint"]
        return json.loads(metadata[b"emi_export"])
    return json.loads((out / "export.json").read_text(encoding="utf-8"))


def test_an_export_says_what_it_was_made_from(store, kind, out):
    export(store, out, kind)
    manifest = manifest_in(out, kind)
    assert (manifest["format"], manifest["version"], manifest["kind"]) == ("emi-export", 1, kind)
    assert manifest["fingerprint"] == store.fingerprint
    assert (manifest["dim"], manifest["hop_seconds"]) == (store.dim, store.hop_seconds)
    assert manifest["vad_names"] == list(store.vad_names)
    if kind != "npz":
        assert (manifest["clips"], manifest["frames"]) == (len(store), store.num_frames.sum())


def test_parquet_has_the_types_that_were_promised(store, out):
    export(store, out, "parquet")
    value = pa.float16() if store.header.dtype == np.float16 else pa.float32()
    wanted = {"id": pa.string(), "seconds": pa.float64(), "num_frames": pa.int64()}
    wanted["frames"] = pa.list_(pa.list_(value, store.dim))
    if store.vad_names:
        wanted |= {"vad": pa.list_(pa.list_(pa.float32(), 3)), "vad_pooled": pa.list_(pa.float32(), 3)}
    schema = pq.read_schema(out)
    assert {field.name: field.type for field in schema} == wanted


def test_a_dataset_has_the_features_that_were_promised(store, out):
    export(store, out, "datasets")
    rows = datasets.load_from_disk(out)
    wanted = {"id": datasets.Value("string"), "seconds": datasets.Value("float64")}
    wanted["frames"] = datasets.Array2D((None, store.dim), str(store.header.dtype))
    if store.vad_names:
        wanted["vad"] = datasets.Array2D((None, 3), "float32")
        wanted["vad_pooled"] = datasets.Sequence(datasets.Value("float32"), length=3)
    assert rows.features == datasets.Features(wanted)
    assert rows.select([0]).map(lambda row: {"first": row["id"][0]})["first"] == [store.ids[0][0]]


@ONE
@pytest.mark.parametrize("kind", READ)
def test_some_clips_come_out_in_the_order_they_are_asked_for(one, kind, out):
    assert export(one, out, kind, SOME).written == 2
    assert [clip.id for clip in READ[kind](out, SOME)] == SOME


def test_memory_is_bounded_in_bytes_and_not_in_clips(store, tmp_path, monkeypatch, record):
    for module in ("selection", "export_arrow"):
        monkeypatch.setattr(f"cache.exchange.{module}.CHUNK_BYTES", 200)
    expected = [record(store[clip_id]) for clip_id in store]
    for kind, read in READ.items():
        export(store, tmp_path / kind, kind)
        assert [record(clip) for clip in read(tmp_path / kind, store.ids)] == expected
    groups = pq.read_metadata(tmp_path / "parquet")
    assert 1 < groups.num_row_groups < len(store)
    export(store, tmp_path / "npy", "npy")
    assert np.load(tmp_path / "npy" / "frames.npy").tobytes() == store.load(store.ids)[0].tobytes()
    chunks = list(Selection(store=store, ids=store.ids, manifest={}).chunks())
    assert [clip_id for chunk in chunks for clip_id in chunk] == store.ids
    lengths = dict(zip(store.ids, store.num_frames.tolist(), strict=True))
    per_frame = store.dim * store.header.dtype.itemsize + 4 * len(store.vad_names)
    assert all(len(c) == 1 or sum(lengths[i] for i in c) * per_frame <= 200 for c in chunks)


@ONE
def test_progress_counts_every_clip(one, kind, out):
    seen = []
    export(one, out, kind, on_progress=lambda *numbers: seen.append(numbers))
    total = len(one)
    assert [numbers[:2] for numbers in seen] == [(done, total) for done in range(1, total + 1)]
    assert [numbers[2] for numbers in seen] == [frames * one.hop_seconds for frames in one.num_frames]


@pytest.mark.parametrize("clip_id", ["a\nb", "a\r", "a\u2028b", "\n"])
def test_an_id_of_two_lines_is_refused_as_a_line_of_a_list(tmp_path, make_cache, clip_id):
    with open_cache(make_cache(tmp_path / "c.h5", [clip_id])) as store:
        with pytest.raises(ExportError, match="line break"):
            export(store, tmp_path / "npy", "npy")
        for kind, read in READ.items():
            export(store, tmp_path / kind, kind)
            assert [clip.id for clip in read(tmp_path / kind, [clip_id])] == [clip_id]


ODD_IDS = ["007", "00007", "7", ".hidden", ".folder/a", "a.npy", "a.npz", "b.c", "日本/語", "..."]


def test_what_is_exported_and_imported_has_its_ids_and_numbers(tmp_path, path, clips):
    with clips(*ODD_IDS) as store:
        export(store, tmp_path / "out", "npz")
        summary = import_features(tmp_path / "out", path, hop_seconds=0.02)
        assert (summary.written, summary.failures) == (len(ODD_IDS), [])
        with open_cache(path) as copy:
            assert set(copy) == set(ODD_IDS)
            for clip_id in ODD_IDS:
                np.testing.assert_array_equal(copy[clip_id].frames, store[clip_id].frames)


def test_names_in_a_folder_that_is_no_export_are_padded_and_hidden_files_passed_over(tmp_path, path, clips):
    with clips("7", ".hidden") as store:
        export(store, tmp_path / "out", "npz")
    (tmp_path / "out" / "export.json").write_text('{"format": "another"}')
    import_features(tmp_path / "out", path, hop_seconds=0.02)
    with open_cache(path) as copy:
        assert list(copy) == ["00007"]


def test_the_arrays_of_an_npy_export_are_not_taken_for_clips(tmp_path, path, clips):
    with clips("a", "b") as store:
        export(store, tmp_path / "out", "npy")
    assert read_manifest(tmp_path / "out", "npy")["clips"] == 2
    with pytest.raises(FeatureFileError, match="export of the kind 'npy', without a file for each clip"):
        import_features(tmp_path / "out", path, hop_seconds=0.02)
    assert not path.exists()


@pytest.fixture(params=[".zarr", ".h5"])
def timed(request, tmp_path, make_cache, make_header):
    """Clips with times and marks, of faces."""
    with open_cache(make_cache(tmp_path / f"timed{request.param}", IDS, header=make_header(timed=True))) as opened:
        yield opened


def bits(array):
    return str(array.dtype), array.shape, array.tobytes()


def test_times_and_marks_come_out_of_every_kind_bit_for_bit(timed, tmp_path):
    for kind in KINDS:
        assert export(timed, tmp_path / kind, kind).written == len(IDS)
        manifest = manifest_in(tmp_path / kind, kind)
        assert (manifest["modality"], manifest["optional"]) == ("face", ["times", "valid"])
        assert manifest["hop_seconds"] is None
    table = pq.read_table(tmp_path / "parquet")
    assert table.schema.field("times").type == pa.list_(pa.list_(pa.float32(), 2))
    assert table.schema.field("valid").type == pa.list_(pa.bool_())
    parquet = {row["id"]: row for row in table.to_pylist()}
    rows = datasets.load_from_disk(tmp_path / "datasets")
    assert rows.features["times"] == datasets.Array2D((None, 2), "float32")
    assert rows.features["valid"] == datasets.Sequence(datasets.Value("bool"))
    rows = {row["id"]: row for row in rows.with_format("numpy")}
    offsets = dict(zip(timed.ids, np.load(tmp_path / "npy" / "offsets.npy"), strict=False))
    mapped = {name: np.load(tmp_path / "npy" / f"{name}.npy", mmap_mode="r") for name in ("times", "valid")}
    for clip_id in timed:
        clip = timed[clip_id]
        with np.load(tmp_path / "npz" / f"{clip_id}.npz") as arrays:
            assert arrays.files == ["frames", "seconds", "vad", "vad_pooled", "times", "valid"]
            found = [arrays]
            found += [{k: np.array(parquet[clip_id][k], getattr(clip, k).dtype) for k in mapped}]
            found += [rows[clip_id]]
            found += [{k: a[offsets[clip_id] :][: len(clip.frames)] for k, a in mapped.items()}]
            for arrays_of_kind in found:
                for name in mapped:
                    assert bits(arrays_of_kind[name]) == bits(getattr(clip, name))


def test_an_export_with_times_resumes_and_finds_another_mark(timed, tmp_path):
    export(timed, tmp_path / "out", "npz", IDS[:2])
    seen = []
    summary = export(timed, tmp_path / "out", "npz", on_progress=lambda *numbers: seen.append(numbers[2]))
    assert (summary.written, summary.present) == (len(IDS) - 2, 2)
    assert seen == [float(timed[clip_id].times[-1, 1]) for clip_id in timed]
    with np.load(tmp_path / "out" / "z.npz") as arrays:
        changed = {**arrays, "valid": ~arrays["valid"]}
    np.savez(tmp_path / "out" / "z.npz", **changed)
    with pytest.raises(ExportExistsError, match="holds other features than clip 'z'"):
        export(timed, tmp_path / "out", "npz")


def test_an_export_of_another_modality_is_another_one(tmp_path, make_cache, make_header, kind):
    plain = make_cache(tmp_path / "a.zarr", "ab")
    faces = make_cache(tmp_path / "b.zarr", "ab", header=replace(make_header(), modality="face"))
    with open_cache(plain) as one, open_cache(faces) as other:
        export(one, tmp_path / "one", kind)
        assert not {"modality", "optional"} & manifest_in(tmp_path / "one", kind).keys()
        export(other, tmp_path / "other", kind)
        with pytest.raises(ExportExistsError, match=r"modality \(there None, wanted face\)"):
            export(other, tmp_path / "one", kind)
        with pytest.raises(ExportExistsError, match=r"modality \(there face, wanted None\)"):
            export(one, tmp_path / "other", kind)


def test_what_is_exported_with_times_is_imported_with_them(timed, tmp_path, path):
    export(timed, tmp_path / "out", "npz")
    assert import_features(tmp_path / "out", path, modality="face").failures == []
    with open_cache(path) as copy:
        for clip_id in timed:
            for name in ("frames", "times", "valid"):
                assert bits(getattr(copy[clip_id], name)) == bits(getattr(timed[clip_id], name))
