"""Never silently wrong: whatever happens to stored bytes, reading raises an `EmiError` or gives what was written."""

import json
import os
import random
import re
import shutil
import struct

import h5py
import pytest
import zarr

from cache import CacheError, CacheFormatError, CacheWriter, DamagedCacheError, EmiError, open_cache
from cache.format import INDEX_ARRAYS, NUMBERS
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.verify import verify


@pytest.fixture
def everything(contents):
    def everything(path):
        with open_cache(path) as store:
            return store.header, contents(path), store.load(store.ids)[0].tobytes()

    return everything


def is_commit_record(path):
    """`segments/<name>/zarr.json` is the commit: without it there is no segment, only what a crash left."""
    return path.name == "zarr.json" and path.parent.parent.name == "segments"


def outcome(read, before):
    """What reading damaged bytes comes to; only the first two are right."""
    try:
        return "same" if read() == before else "different"
    except EmiError:
        return "refused"
    except Exception as error:
        return repr(error)


@pytest.fixture
def wrong_after_flips(flipped, faults):
    def wrong_after_flips(file, offsets, read, before):
        """Flip one byte at each offset of a file in turn, and list what was neither refused nor the same."""
        sound, wrong = file.read_bytes(), []
        for offset in offsets:
            file.write_bytes(flipped(sound, offset))
            faults.count("flips")
            if (result := outcome(read, before)) not in ("same", "refused"):
                wrong.append((file.name, offset, result))
        file.write_bytes(sound)
        return wrong

    return wrong_after_flips


@pytest.mark.parametrize("flips", [4, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", [*NUMBERS, *INDEX_ARRAYS, "the segment", "the root"])
def test_a_flipped_byte_anywhere_in_a_zarr_cache_is_found(
    tmp_path, part, flips, make_header, make_cache, everything, files_of, wrong_after_flips
):
    root = make_cache(tmp_path / "a.zarr", "ab", header=make_header(timed=True))
    before = everything(root)
    (segment,) = [p for p in (root / "segments").iterdir() if p.is_dir()]
    groups = {"the segment": [segment / "zarr.json"], "the root": [root / "zarr.json", root / "segments" / "zarr.json"]}
    for file in groups.get(part) or files_of(segment / part):
        size = file.stat().st_size
        offsets = random.Random(size).sample(range(size), min(size, flips))
        assert wrong_after_flips(file, offsets, lambda: everything(root), before) == []


@pytest.fixture
def try_flips_of_hdf5(everything, flipped):
    def try_flips_of_hdf5(path, start, step, report):
        """Report `offset outcome` for each flip; each in a new file, as HDF5 knows an open one by its inode."""
        sound, before = path.read_bytes(), everything(path)
        for offset in range(start, len(sound), step):
            os.write(report, f"{offset} ".encode())
            copy = path.with_name(f"{offset}.h5")
            copy.write_bytes(flipped(sound, offset))
            os.write(report, outcome(lambda copy=copy: everything(copy), before).encode() + b"\n")
            copy.unlink()

    return try_flips_of_hdf5


@pytest.mark.parametrize(
    ("first", "step"), [(3, 151), *(pytest.param(i, 16, marks=pytest.mark.slow) for i in range(16))]
)
def test_a_flipped_byte_anywhere_in_an_hdf5_cache_is_found(
    tmp_path, first, step, make_cache, try_flips_of_hdf5, fork, exit_code, faults
):
    """In a child, since HDF5 may crash over damaged metadata, and not only raise."""
    path, start, found = make_cache(tmp_path / "a.h5", "ab"), first, []
    while start < path.stat().st_size:
        read, report = os.pipe()
        child = fork(try_flips_of_hdf5, path, start, step, report, seconds=200)
        os.close(report)
        with os.fdopen(read) as reports:
            lines = reports.read().splitlines()
        if code := exit_code(child):
            lines[-1] += f"the interpreter died with {code}"
        found += [line.split(maxsplit=1) for line in lines]
        start = int(found[-1][0]) + step
    faults.count("flips", len(found))
    assert [(offset, result) for offset, result in found if result not in ("same", "refused")] == []
    assert len(found) == len(range(first, path.stat().st_size, step))


def test_hdf5_keeps_checksums_over_its_own_metadata(tmp_path, make_cache):
    """Without, a flipped byte can take a segment off the list unnoticed, or HDF5 down with it."""
    content = make_cache(tmp_path / "a.h5", "ab").read_bytes()
    assert content[8] >= 2, "version of the superblock"
    assert b"OHDR" in content, "object headers with checksums"
    assert b"SNOD" not in content, "symbol tables, which have none"


def sizes_in_string_heaps(content):
    """Offsets of the size of each object in the heaps where HDF5 keeps attributes of text."""
    for heap in re.finditer(b"GCOL", content):
        at, end = heap.start() + 16, heap.start() + int.from_bytes(content[heap.start() + 8 :][:8], "little")
        while at + 16 <= end:
            number, size = struct.unpack_from("<H6xQ", content, at)
            yield at + 8
            at += size if number == 0 else 16 + -(-size // 8) * 8


def test_damage_to_the_only_part_of_an_hdf5_file_without_a_checksum_does_not_make_it_hang(
    tmp_path, make_cache, everything, fork, exit_code, faults
):
    """HDF5 runs for ever over a heap in which it lands on an object of no size."""
    path = make_cache(tmp_path / "a.h5", "ab")
    content, before = path.read_bytes(), everything(path)
    trials = [(at, size) for at in sizes_in_string_heaps(content) for size in (0, 1, 0x18, 0x30, 0x68, 0xAA, 0xFF)]

    def try_all():
        for number, (at, size) in enumerate(trials):
            damaged = path.with_name(f"{number}.h5")
            damaged.write_bytes(content[:at] + bytes([size]) + content[at + 1 :])
            assert outcome(lambda damaged=damaged: everything(damaged), before) in ("same", "refused")
            damaged.unlink()

    assert len(trials) > 20
    assert exit_code(fork(try_all)) == 0
    faults.count("flips", len(trials))


HEADER = [
    ("dim", "4", "5"),
    ("hop_seconds", "0.02", "0.03"),
    ("vad_names", "arousal", "brousal"),
    ("provenance", "2.", "3."),
]


@pytest.mark.parametrize(("field", "old", "new"), HEADER)
def test_a_changed_header_is_found(copy, field, old, new, everything):
    before = everything(copy)
    if copy.suffix == ".zarr":
        root = zarr.open_group(copy, mode="r+")
        root.attrs[field] = json.loads(json.dumps(root.attrs[field]).replace(old, new))
    else:
        with h5py.File(copy, "r+") as file:
            value = file.attrs[field]
            file.attrs[field] = value.replace(old, new) if isinstance(value, str) else type(value)(new)
    with pytest.raises(EmiError):
        assert everything(copy) != before


@pytest.mark.parametrize("part", ["frames", "vad", "vad_pooled"])
def test_a_damaged_clip_is_named_and_leaves_the_others_readable(copy, ids, part, make_header, make_clip, record, spoil):
    victim = ids[1]
    spoil(copy, victim, part)
    with open_cache(copy) as store:
        for read in (lambda: store[victim], lambda: store.load(ids)):
            with pytest.raises(DamagedCacheError, match=re.escape(f"clip {victim!r}")) as caught:
                read()
            assert str(copy) in str(caught.value)
        for other in ids[:1] + ids[2:]:
            assert record(store[other]) == record(make_header().stored(make_clip(other)))


@pytest.fixture
def checksum(ids, make_header, make_clip):
    """That of the first clip, as it is stored."""
    return struct.pack("<I", make_header().stored(make_clip(ids[0])).checksum())


def places_of(needle, path, files_of):
    """(file, offset) wherever bytes lie: first in a segment, then in the block of the index that repeats them."""
    found = [(file, m.start()) for file in files_of(path) for m in re.finditer(re.escape(needle), file.read_bytes())]
    return sorted(found, key=lambda place: ("/index/" in str(place[0]), place[1]))


def overwrite(file, offset, new):
    content = file.read_bytes()
    file.write_bytes(content[:offset] + new + content[offset + len(new) :])


def test_damage_to_the_index_of_a_segment_is_read_past_where_a_block_repeats_it_and_found_by_verify(
    copy, ids, checksum, files_of, expected, contents
):
    in_segment, _ = places_of(checksum, copy, files_of)
    overwrite(*in_segment, bytes(4))
    assert contents(copy) == expected(ids)
    damaged = verify(copy).damaged
    assert [(clip.id, clip.lost) for clip in damaged] == [(clip_id, False) for clip_id in ids[:4]]
    assert "index does not match its checksum" in damaged[0].reason


def test_damage_to_every_index_of_a_segment_is_found_when_the_cache_is_opened(copy, checksum, files_of):
    for place in places_of(checksum, copy, files_of):
        overwrite(*place, bytes(4))
    with pytest.raises(DamagedCacheError, match="index of segment"):
        open_cache(copy)


def test_a_deleted_or_truncated_file_of_a_zarr_cache_is_found(tmp_path, make_cache, everything, files_of, faults):
    """Zarr itself reads a missing chunk as zeros."""
    root = make_cache(tmp_path / "a.zarr", ["a"])
    before = everything(root)
    for file in files_of(root):
        sound = file.read_bytes()
        for remaining in (None, len(sound) // 2):
            if remaining is None and is_commit_record(file):
                continue
            file.unlink() if remaining is None else file.write_bytes(sound[:remaining])
            faults.count("cuts")
            assert outcome(lambda: everything(root), before) in ("same", "refused"), (file, remaining)
            file.write_bytes(sound)


def test_a_missing_chunk_is_found_by_the_read_of_its_clips(tmp_path, make_cache):
    root = make_cache(tmp_path / "a.zarr", "ab")
    (segment,) = [p for p in (root / "segments").iterdir() if p.is_dir()]
    shutil.rmtree(segment / "frames" / "c")
    with open_cache(root) as store, pytest.raises(DamagedCacheError, match="clip 'b'"):
        store["b"]


def test_a_truncated_hdf5_cache_is_refused(tmp_path, make_cache, everything, faults):
    path = make_cache(tmp_path / "a.h5", "ab")
    sound = path.read_bytes()
    for size in [0, 1, 8, 100, len(sound) // 2, len(sound) - 1]:
        cut = tmp_path / f"{size}.h5"
        cut.write_bytes(sound[:size])
        faults.count("cuts")
        with pytest.raises(CacheFormatError):
            everything(cut)


def test_bytes_behind_the_end_of_an_hdf5_cache_do_no_harm(tmp_path, make_cache, everything, expected, contents):
    """A crash leaves some there."""
    path = make_cache(tmp_path / "a.h5", "ab")
    with path.open("ab") as file:
        file.write(b"what was in flight" * 1000)
    assert contents(path) == expected("ab")
    make_cache(path, "cde")
    assert contents(path) == expected("abcde")


def test_a_writer_refuses_a_damaged_cache(copy, ids, make_header, make_cache, expected, contents, files_of):
    sound = {file: file.read_bytes() for file in files_of(copy)}
    for place in places_of(ids[0].encode(), copy, files_of):
        overwrite(*place, ids[0].encode()[::-1])
    with pytest.raises(CacheError):
        CacheWriter(copy, make_header())
    for file, content in sound.items():
        file.write_bytes(content)
    make_cache(copy, ["new"])
    assert contents(copy) == expected([*ids, "new"])


FIVE = ("a", "b", "c", "d", "e")


@pytest.fixture(params=["written", "compacted"])
def one_segment(request, tmp_path, make_cache):
    """A Zarr cache of one segment."""
    path = make_cache(tmp_path / "a.zarr", FIVE, per_segment=5 if request.param == "written" else 2)
    if request.param == "compacted":
        compact(path)
    assert len(list(path.glob("segments/0*"))) == 1
    return path


@pytest.mark.parametrize("what", ["zarr.json", ""])
def test_the_only_segment_cannot_vanish_unnoticed(one_segment, what):
    (segment,) = one_segment.glob("segments/0*")
    (segment / "zarr.json").unlink() if what else shutil.rmtree(segment)
    assert {clip.id for clip in verify(one_segment).damaged} == set(FIVE)
    with pytest.raises(DamagedCacheError):
        compact(one_segment)
    assert (segment / "frames").exists() == bool(what)
    with open_cache(one_segment) as store:
        assert tuple(store.ids) == FIVE
        if not what:
            with pytest.raises(DamagedCacheError):
                store.load(store.ids)


@pytest.mark.parametrize("name", ["ids", "offsets", "seconds", "checksums"])
@pytest.mark.parametrize("file", ["c/0", "zarr.json"])
def test_a_damaged_index_of_the_only_segment_loses_no_clip(one_segment, name, file, expected, contents):
    (spoiled,) = one_segment.glob(f"segments/0*/{name}/{file}")
    spoiled.write_bytes(b"\xff" + spoiled.read_bytes()[1:])
    assert not verify(one_segment).sound
    assert repair(one_segment).dropped == []
    assert contents(one_segment) == expected(FIVE)
    assert verify(one_segment).sound
