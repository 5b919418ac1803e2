"""A cache made otherwise, by a later version, or by someone else, is refused by name and left as it was."""

import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
import zarr

from cache import CacheFormatError, CacheNotFoundError, CacheWriter, StaleCacheError, open_cache


def set_attribute(path, key, value):
    if path.suffix == ".zarr":
        zarr.open_group(path, mode="r+").attrs[key] = value
    else:
        with h5py.File(path, "r+") as file:
            file.attrs[key] = value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 9}, "layer (stored 12, wanted 9)"),
        ({"resampler": "sinc"}, "resampler (stored absent, wanted sinc)"),
        ({"weights_sha256": "f" * 64}, "weights_sha256 (stored 0123456789ab…, wanted ffffffffffff…)"),
        ({"layer": 1, "dtype": "float32"}, "dtype (stored float16, wanted float32); layer (stored 12, wanted 1)"),
    ],
)
def test_another_fingerprint_is_refused_with_both_values(filled, change, message, make_header, state_of):
    before = state_of(filled)
    with pytest.raises(StaleCacheError) as caught:
        CacheWriter(filled, make_header(**change))
    assert message in str(caught.value)
    assert str(filled) in str(caught.value)
    assert state_of(filled) == before


def test_a_stale_cache_is_refused_before_it_holds_a_clip(path, make_cache, make_header):
    make_cache(path, [])
    with pytest.raises(StaleCacheError):
        CacheWriter(path, make_header(layer=9))


def test_a_refused_writer_lets_go_of_the_cache(path, make_cache, make_header, expected, contents):
    make_cache(path, [])
    with pytest.raises(StaleCacheError):
        CacheWriter(path, make_header(layer=9))
    make_cache(path, "a")
    assert contents(path) == expected("a")


def test_a_renamed_backbone_with_the_same_weights_is_the_same(copy, ids, make_cache, make_header, expected, contents):
    make_cache(copy, ["new"], header=make_header(backbone="/moved/to/another/folder"))
    assert contents(copy) == expected([*ids, "new"])


def test_a_renamed_backbone_without_a_hash_of_its_weights_is_another(path, make_cache, make_header):
    def header(name):
        fingerprint = make_header(backbone=name).fingerprint
        return replace(make_header(), fingerprint={k: v for k, v in fingerprint.items() if k != "weights_sha256"})

    make_cache(path, [], header=header("one"))
    with pytest.raises(StaleCacheError, match=r"backbone \(stored one, wanted two\)"):
        CacheWriter(path, header("two"))


@pytest.mark.parametrize("change", [{"dim": 5}, {"vad": False}])
def test_another_layout_is_refused(filled, change, make_header):
    with pytest.raises(CacheFormatError, match="4 features per frame"):
        CacheWriter(filled, make_header(**change))


def test_other_library_versions_are_no_reason_to_refuse(copy, ids, make_cache, make_header, expected, contents):
    make_cache(copy, ["new"], header=replace(make_header(), provenance={"numpy": "99"}))
    assert contents(copy) == expected([*ids, "new"])


@pytest.mark.parametrize("use", ["read", "write"])
def test_a_later_version_is_refused(copy, use, make_header, state_of):
    set_attribute(copy, "version", 3)
    before = state_of(copy)
    with pytest.raises(CacheFormatError, match=r"version 3.*reads versions up to 2"):
        open_cache(copy) if use == "read" else CacheWriter(copy, make_header())
    assert state_of(copy) == before


def foreign_group(path):
    if path.suffix == ".zarr":
        zarr.create_array(path / "x", data=np.arange(3), zarr_format=3)
        zarr.create_group(path, zarr_format=3)
    else:
        with h5py.File(path, "w") as file:
            file["x"] = np.arange(3)


def foreign_array(path):
    if path.suffix == ".zarr":
        zarr.create_array(path, data=np.arange(3), zarr_format=3)
    else:
        foreign_group(path)


def older_zarr(path):
    if path.suffix == ".zarr":
        zarr.create_group(path, zarr_format=2)
    else:
        foreign_group(path)


def folder(path):
    path.mkdir()
    (path / "notes.txt").write_text("mine")


def text(path):
    path.write_text("mine, and longer than any signature at the head of a file")


def empty_file(path):
    path.touch()


@pytest.mark.parametrize("use", ["read", "write"])
@pytest.mark.parametrize("make", [foreign_group, foreign_array, older_zarr, folder, text, empty_file])
def test_what_is_no_cache_is_refused_and_left_untouched(path, make, use, make_header, state_of):
    make(path)
    before = state_of(path)
    with pytest.raises(CacheFormatError, match=re.escape(str(path))):
        open_cache(path) if use == "read" else CacheWriter(path, make_header())
    assert state_of(path) == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["features.npz", "features", "features.zarr.zip"])
@pytest.mark.parametrize("use", ["read", "write"])
def test_an_unknown_suffix_is_refused_and_nothing_is_made(tmp_path, name, use, make_header):
    with pytest.raises(CacheFormatError, match=r"NAME\.zarr or NAME\.h5"):
        open_cache(tmp_path / name) if use == "read" else CacheWriter(tmp_path / name, make_header())
    assert list(tmp_path.iterdir()) == []


def test_reading_where_nothing_is_says_how_to_make_a_cache(path):
    with pytest.raises(CacheNotFoundError, match="emi extract MEDIA --cache"):
        open_cache(path)
    assert not path.exists()
