"""The format without our code: what DESIGN.md says, found by plain `zarr`, plain `h5py` and `google_crc32c`."""

import google_crc32c
import h5py
import numpy as np
import pytest
import zarr

INDEX = {"offsets": np.int64, "seconds": np.float64, "checksums": np.uint32}
VAD = {"vad": np.float32, "vad_pooled": np.float32}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_arrays_have_the_names_dtypes_and_shapes_of_the_design(path, dtype, make_cache, make_header, plain):
    make_cache(path, "abcd", per_segment=2, header=make_header(dtype=dtype))
    for _, arrays in plain(path)[1]:
        total = arrays["offsets"][-1]
        assert {k: a.dtype for k, a in arrays.items() if k != "ids"} == {"frames": np.dtype(dtype)} | VAD | INDEX
        assert {k: np.shape(a) for k, a in arrays.items()} == {
            "frames": (total, 4),
            "vad": (total, 3),
            "vad_pooled": (2, 3),
            "offsets": (3,),
            "ids": (2,),
            "seconds": (2,),
            "checksums": (2,),
        }


def test_vad_is_absent_where_a_backbone_has_none(path, make_cache, make_header, plain):
    make_cache(path, "a", header=make_header(vad=False))
    assert [arrays.keys() for _, arrays in plain(path)[1]] == [{"frames", "ids", *INDEX}]


def test_the_root_names_format_version_and_fingerprint(filled, make_header, plain):
    attributes, _ = plain(filled)
    header = make_header()
    assert (attributes["format"], attributes["version"]) == ("emi-features", 1)
    assert attributes["fingerprint"] == header.fingerprint
    assert attributes["provenance"] == header.provenance
    assert (attributes["dim"], attributes["vad_names"], attributes["hop_seconds"]) == (4, list(header.vad_names), 0.02)


def test_offsets_cut_the_rows_into_clips(filled, ids, make_clip, make_header, plain):
    found = []
    for _, arrays in plain(filled)[1]:
        assert arrays["offsets"][0] == 0
        for i, clip_id in enumerate(arrays["ids"]):
            clip = make_header().stored(make_clip(clip_id))
            rows = slice(arrays["offsets"][i], arrays["offsets"][i + 1])
            np.testing.assert_array_equal(arrays["frames"][rows], clip.frames)
            np.testing.assert_array_equal(arrays["vad"][rows], clip.vad)
            np.testing.assert_array_equal(arrays["vad_pooled"][i], clip.vad_pooled)
            assert arrays["seconds"][i] == clip.seconds
            found.append(clip_id)
    assert found == ids


@pytest.mark.parametrize("vad", [True, False])
def test_checksums_are_the_crc32c_of_the_stored_bytes(path, vad, make_cache, make_header, plain):
    make_cache(path, "abc", per_segment=3, header=make_header(vad))
    ((_, arrays),) = plain(path)[1]
    for i, checksum in enumerate(arrays["checksums"]):
        rows = slice(arrays["offsets"][i], arrays["offsets"][i + 1])
        stored = arrays["frames"][rows].astype("<f2").tobytes()
        if vad:
            stored += arrays["vad"][rows].astype("<f4").tobytes() + arrays["vad_pooled"][i].astype("<f4").tobytes()
        assert checksum == google_crc32c.value(stored)


def test_the_index_has_a_crc32c_of_its_own(filled, plain):
    for attributes, arrays in plain(filled)[1]:
        index = b"".join(i.encode() + b"\0" for i in arrays["ids"])
        index += b"".join(arrays[k].astype(np.dtype(t).newbyteorder("<")).tobytes() for k, t in INDEX.items())
        assert attributes["index_crc32c"] == google_crc32c.value(index)
        assert (attributes["clips"], attributes["frames"]) == (len(arrays["ids"]), len(arrays["frames"]))


def test_each_array_is_one_uncompressed_run_of_bytes(filled):
    """One file per Zarr array, one contiguous HDF5 data set: a copy reads at the speed of the disk."""
    if filled.suffix == ".zarr":
        for segment in zarr.open_group(filled, mode="r")["segments"].group_values():
            for name, array in segment.arrays():
                files = [p for p in (filled / array.path).rglob("*") if p.is_file() and p.name != "zarr.json"]
                assert (array.compressors, len(files)) == ((), 1), name
    else:
        with h5py.File(filled) as root:
            for array in (array for segment in root["segments"].values() for array in segment.values()):
                assert (array.chunks, array.compression) == (None, None), array.name
                assert array.id.get_offset() is not None, array.name
