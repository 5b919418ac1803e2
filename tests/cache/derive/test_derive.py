"""A cache derived from another: equal to its definition, resumed to the same bytes, never mixed with another recipe."""

import functools
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import cache.derive.derived
from cache import CacheWriter, DamagedCacheError, EmiError, StaleCacheError, open_cache
from cache.derive.derived import derive, describe, source_header, transform_of
from cache.derive.transform import Transform, training_set
from cache.errors import DeriveError
from cache.fingerprint import digest
from cache.maintenance.verify import verify
from emi.cli.cache import derive as cache_derive

CLIPS = [f"{i:02d}" for i in range(20)]
TRAIN = CLIPS[:14]
RECIPE = {"pool": 2, "pca": 3, "standardise": True, "train_ids": TRAIN}


one_container = pytest.mark.parametrize("path", [".h5"], indirect=True)


@pytest.fixture
def source(path, make_cache):
    """Twenty clips of 1 to 8 frames of 4 features, VAD included."""
    return make_cache(path.with_stem("source"), CLIPS, per_segment=7)


@pytest.fixture
def changed_source(path, make_header, make_clip):
    def make(changed, factor):
        source = path.with_stem(f"changed-{changed}-{factor}")
        with CacheWriter(source, make_header()) as writer:
            for clip in map(make_clip, CLIPS):
                writer.add(replace(clip, frames=clip.frames * factor) if clip.id == changed else clip)
        return source

    return make


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(cache.derive.derived, "CacheWriter", functools.partial(CacheWriter, segment_bytes=40))


def test_every_clip_is_the_stored_transform_of_its_source(source, path, record):
    summary = derive(source, path, **RECIPE)
    assert (summary.written, summary.present, summary.fitted, summary.missing) == (20, 0, True, 0)
    with open_cache(source) as large, open_cache(path) as small:
        fitted = Transform.fit([large[clip_id] for clip_id in TRAIN], 2, 3, True)
        stored = transform_of(small)
        assert stored is not None
        for name, array in fitted.to_arrays().items():
            np.testing.assert_array_equal(stored.to_arrays()[name], array)
        assert small.ids == large.ids
        assert (small.dim, small.vad_names, small.hop_seconds) == (3, large.vad_names, 2 * large.hop_seconds)
        for clip_id in large:
            assert record(small[clip_id]) == record(small.header.stored(stored.apply(large[clip_id])))


@one_container
def test_the_fingerprint_is_that_of_the_source_and_the_recipe(source, path):
    derive(source, path, **RECIPE, dtype="float32")
    large, small = open_cache(source), open_cache(path)
    derived = small.fingerprint["derived"]
    assert {**small.fingerprint, "derived": None} == {**large.fingerprint, "dtype": "float32", "derived": None}
    assert (derived["from"], derived["from_dtype"]) == (digest(large.fingerprint), "float16")
    assert (derived["pool"], derived["pca"], derived["standardise"]) == (2, 3, True)
    checksums = {clip_id: large.checksum(clip_id) for clip_id in TRAIN}
    assert derived["fitted_on"] == {"clips": len(TRAIN), "sha256": training_set(checksums)}
    transform = transform_of(small)
    assert transform is not None
    back = source_header(small.header, transform)
    assert digest(back.fingerprint) == derived["from"]
    assert (back.dim, back.hop_seconds) == (large.dim, large.hop_seconds)
    assert transform_of(large) is None
    assert describe(derived) == "means of 2 frames, 3 principal components, unit variance (fitted on 14 clips)"


@one_container
def test_nothing_is_fitted_where_frames_are_only_pooled(source, path, make_header):
    assert not derive(source, path, pool=3, train_ids=TRAIN).fitted
    small = open_cache(path)
    assert small.extras == {}
    assert small.fingerprint["derived"].keys() == {"from", "from_dtype", "pool", "standardise"}
    assert small.dim == source_header(small.header, transform_of(small)).dim == make_header().dim
    assert describe(small.fingerprint["derived"]) == "means of 3 frames"


@one_container
def test_the_transform_learns_from_training_clips_only(source, path, changed_source, contents):
    targets = path.with_stem("a"), path.with_stem("b")
    derive(source, targets[0], **RECIPE)
    derive(changed_source(CLIPS[-1], 50), targets[1], **RECIPE)
    one, other = map(contents, targets)
    assert one.pop(CLIPS[-1]) != other.pop(CLIPS[-1])
    assert one == other
    assert open_cache(targets[0]).fingerprint == open_cache(targets[1]).fingerprint


@given(
    others=st.lists(st.sampled_from(CLIPS[14:]), unique=True),
    order=st.randoms(use_true_random=False),
    pool=st.integers(1, 9),
    pca=st.sampled_from([None, 2]),
)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_clip_does_not_depend_on_its_neighbours(others, order, pool, pca, make_cache, tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("neighbours")
    ids = TRAIN + others
    order.shuffle(ids)
    found = []
    for name, clips in (("few.h5", ids), ("all.h5", CLIPS)):
        make_cache(folder / f"source-{name}", clips)
        derive(folder / f"source-{name}", folder / name, pool=pool, pca=pca, train_ids=TRAIN)
        found.append(contents(folder / name))
    few, every = found
    assert few.keys() == set(ids)
    assert few == {clip_id: every[clip_id] for clip_id in few}


def test_run_again_there_is_nothing_to_do_and_a_grown_source_is_followed(source, path, make_cache, contents):
    derive(source, path, **RECIPE)
    before = contents(path)
    again = derive(source, path, **RECIPE)
    assert (again.written, again.present, again.fitted) == (0, 20, False)
    assert contents(path) == before
    make_cache(source, ["new", "newer"])
    grown = derive(source, path, **RECIPE)
    assert (grown.written, grown.present, grown.fitted) == (2, 20, False)
    after = contents(path)
    assert list(after) == [*CLIPS, "new", "newer"]
    assert {clip_id: after[clip_id] for clip_id in before} == before


@pytest.mark.parametrize("stage", [("fitting", 5), ("deriving", 1), ("deriving", 11)], ids=str)
@pytest.mark.usefixtures("small_segments")
def test_killed_and_resumed_equals_uninterrupted(source, path, stage, fork, exit_code, contents, monkeypatch):
    def die(now, done, total, seconds):
        if (now, done) == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    whole = path.with_stem("whole")
    derive(source, whole, **RECIPE)
    assert exit_code(fork(functools.partial(derive, source, path, on_progress=die, **RECIPE))) == -signal.SIGKILL
    if stage[0] == "deriving":  # then what was fitted is kept
        monkeypatch.setattr(Transform, "fit", None)
        assert len(open_cache(path)) < len(CLIPS)
    derive(source, path, **RECIPE)
    assert list(contents(path).items()) == list(contents(whole).items())
    for name, array in open_cache(whole).extras.items():
        np.testing.assert_array_equal(open_cache(path).extras[name], array)


@one_container
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train_ids": TRAIN[:-1]}, r"derived\.fitted_on\.clips \(stored 14, wanted 13\); derived\.fitted_on\.sha256"),
        ({"train_ids": [*TRAIN[1:], CLIPS[-1]]}, r"derived\.fitted_on\.sha256"),
        ({"pool": 4}, r"derived\.pool \(stored 2, wanted 4\)"),
        ({"pca": 2}, r"derived\.pca \(stored 3, wanted 2\)"),
        ({"pca": None}, r"derived\.pca \(stored 3, wanted absent\)"),
        ({"standardise": False}, r"derived\.standardise \(stored true, wanted false\)"),
        ({"dtype": "float32"}, r"dtype \(stored float16, wanted float32\)"),
    ],
)
def test_another_recipe_is_refused_by_the_fields_that_differ(source, path, contents, change, named):
    derive(source, path, **RECIPE)
    before = contents(path)
    with pytest.raises(StaleCacheError, match=named):
        derive(source, path, **(RECIPE | change))
    assert contents(path) == before


@one_container
def test_features_extracted_otherwise_are_refused(source, path, make_cache, make_header):
    derive(source, path, **RECIPE)
    other = make_cache(path.with_stem("other"), CLIPS, header=make_header(layer=9))
    with pytest.raises(StaleCacheError, match=r"derived\.from \(.*layer \(stored 12, wanted 9\)"):
        derive(other, path, **RECIPE)


@one_container
def test_a_training_clip_with_other_bytes_is_another_training_set(source, path, changed_source):
    derive(source, path, **RECIPE)
    other = changed_source(TRAIN[3], 2)
    with pytest.raises(StaleCacheError, match=r"derived\.fitted_on\.sha256"):
        derive(other, path, **RECIPE)


@one_container
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pca": 2}, "give --train CSV"),
        ({"pool": 0}, "--pool takes 1 to 2147483647 frames, got 0"),
        ({"pca": 5, "train_ids": TRAIN}, "has 4 features per frame; give 1 to 4"),
        ({"dtype": "float64"}, "--dtype must be one of float16, float32, got 'float64'"),
        ({"pca": 2, "train_ids": [*TRAIN, "x", "y"]}, r"2 of the 16 .* \(first: x, y\); .* --skip-missing"),
        ({"pca": 2, "train_ids": ["x"]}, "holds none of the 1 training clips"),
        ({"pca": 4, "train_ids": TRAIN[:1], "pool": 9}, r"have 1 frames after pooling.*smaller --pca or --pool"),
    ],
)
def test_a_recipe_that_cannot_be_followed_says_what_to_give(source, path, options, message):
    with pytest.raises(DeriveError, match=message):
        derive(source, path, **options)
    assert not path.exists()


@one_container
def test_a_derived_cache_is_no_source(source, path):
    derive(source, path, pool=2)
    with pytest.raises(DeriveError, match="is derived itself"):
        derive(path, path.with_stem("again"), pool=2)


def test_a_cache_is_not_derived_into_itself(source, contents):
    before = contents(source)
    with pytest.raises(StaleCacheError, match=r"derived\.from \(stored absent"):
        derive(source, source, pool=2)
    assert contents(source) == before


def test_a_damaged_clip_of_the_source_raises_as_reading_does(source, path):
    with open_cache(source) as store:
        wanted = store["05"].frames.tobytes()
    for file in (f for f in [source, *Path(source).rglob("*")] if f.is_file()):
        file.write_bytes(file.read_bytes().replace(wanted, bytes([wanted[0] ^ 1]) + wanted[1:]))
    with pytest.raises(DamagedCacheError, match="'05'"):
        derive(source, path, **RECIPE)


@one_container
def test_progress_counts_both_passes(source, path):
    seen = []
    derive(source, path, **RECIPE, on_progress=lambda *report: seen.append(report))
    assert [(stage, done, total) for stage, done, total, _ in seen] == [
        *(("fitting", i, 14) for i in range(1, 15)),
        *(("deriving", i, 20) for i in range(1, 21)),
    ]
    hop = open_cache(source).hop_seconds
    assert sum(seen[i][-1] for i in range(14, 34)) == pytest.approx(hop * open_cache(source).num_frames.sum())


def app():
    commands = typer.Typer()
    commands.command()(cache_derive.derive)
    return commands


@pytest.mark.parametrize("pool", [1 << 31, 1 << 63, 1 << 80])
def test_derive_takes_no_window_that_numpy_cannot_count(filled, tmp_path, pool):
    target = tmp_path / "small.h5"
    result = CliRunner().invoke(app(), [str(filled), str(target), f"--pool={pool}"])
    assert isinstance(result.exception, EmiError)
    assert str(result.exception) == f"--pool takes 1 to 2147483647 frames, got {pool}"
    assert not target.exists()


def test_the_longest_window_is_the_mean_of_each_clip(filled, tmp_path):
    target = tmp_path / "small.h5"
    assert CliRunner().invoke(app(), [str(filled), str(target), "--pool=2147483647"]).exit_code == 0
    with open_cache(filled) as store, open_cache(target) as small:
        for clip_id in store:
            mean = store[clip_id].frames.astype(np.float32).mean(0, keepdims=True).astype(np.float16)
            np.testing.assert_array_equal(small[clip_id].frames, mean)


def test_a_derivation_cut_off_before_it_was_a_cache_does_not_stand_in_the_way_of_another(tmp_path, make_cache):
    source = make_cache(tmp_path / "a.zarr", "abcde")
    derive(source, tmp_path / "b.zarr", pca=1, standardise=True, train_ids="abcde")
    (tmp_path / "b.zarr" / "zarr.json").unlink()
    shutil.rmtree(tmp_path / "b.zarr" / "segments")
    shutil.rmtree(tmp_path / "b.zarr" / "index")
    derive(source, tmp_path / "b.zarr", standardise=True, train_ids="abcde")
    assert verify(tmp_path / "b.zarr").sound
    with open_cache(tmp_path / "b.zarr") as store:
        assert "components" not in store.extras


def test_pool_stats_are_in_the_recipe_and_double_the_features(source, path):
    derive(source, path, pool=3, pool_stats=("mean", "std"))
    with open_cache(source) as one, open_cache(path) as two:
        assert two.dim == 2 * one.dim
        assert two.fingerprint["derived"]["pool_stats"] == ["mean", "std"]
        assert source_header(two.header, transform_of(two)).dim == one.dim
        for clip in CLIPS:
            np.testing.assert_array_equal(
                two.header.stored(transform_of(two).apply(one[clip])).frames, two[clip].frames
            )
        assert describe(two.fingerprint["derived"]) == "means and standard deviations of 3 frames"
    with pytest.raises(StaleCacheError, match="pool_stats"):
        derive(source, path, pool=3)


def test_pool_stats_go_with_components(source, path):
    derive(source, path, pool=3, pool_stats=("mean", "std"), pca=5, standardise=True, train_ids=TRAIN)
    with open_cache(source) as one, open_cache(path) as two:
        assert two.dim == 5
        assert source_header(two.header, transform_of(two)).dim == one.dim


@pytest.mark.parametrize("stats", [(), ("mode",), ("mean", "mean")])
def test_unknown_pool_stats_are_refused(source, path, stats):
    with pytest.raises(DeriveError, match="--pool-stats takes mean, std or both"):
        derive(source, path, pool_stats=stats)


def test_pool_stats_on_the_command_line(source, path):
    app = typer.Typer()
    app.command()(cache_derive.derive)
    result = CliRunner().invoke(app, [str(source), str(path), "--pool", "2", "--pool-stats", "mean, std"])
    assert result.exit_code == 0, result.output
    assert "8 features" in result.output
