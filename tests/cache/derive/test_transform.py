"""Pooling against a plain loop, components and scales against scikit-learn, and what a transform refuses."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from cache import CacheFormatError, Clip
from cache.derive import transform as module
from cache.derive.transform import Transform, pooled, training_set
from cache.errors import DeriveError

DIM = 7


def made_clips(number=12, dim=DIM, longest=40, seed=0, offset=3.0, dtype=np.float32):
    """Clips of 1 to `longest` frames whose features depend on one another and have large means."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dim, dim))
    lengths = [1, *rng.integers(1, longest + 1, number - 1)]
    clips = []
    for i, frames in enumerate(lengths):
        values = (rng.normal(size=(frames, dim)) @ mixing + offset * np.arange(dim)).astype(dtype)
        vad = rng.uniform(size=(frames, 3)).astype(np.float32)
        clips.append(Clip(f"{i:03d}", values, vad, vad.mean(0), frames * 0.02))
    return clips


def stacked(clips, pool=1):
    return np.concatenate([by_loop(clip.frames, pool) for clip in clips])


def by_loop(frames, pool):
    """The definition, in float64."""
    return np.array([frames[i : i + pool].astype(np.float64).mean(0) for i in range(0, len(frames), pool)])


@settings(deadline=None)
@given(frames=st.integers(1, 33), pool=st.integers(1, 12), half=st.booleans(), seed=st.integers(0, 99))
def test_pooling_is_the_mean_of_each_window_and_of_what_is_left(frames, pool, half, seed):
    values = np.random.default_rng(seed).normal(size=(frames, 3)).astype(np.float16 if half else np.float32)
    means = pooled(values, pool)
    assert means.dtype == np.float32
    assert means.shape == (-(-frames // pool), 3)
    np.testing.assert_allclose(means, by_loop(values, pool), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pool", [1, 4])
@pytest.mark.parametrize("block", [5, 2048])
def test_the_components_are_scikit_learns_up_to_sign(pool, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    clips = made_clips()
    theirs = PCA(3, svd_solver="full").fit(stacked(clips, pool))
    ours = Transform.fit(clips, pool, pca=3)
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-6)
    assert ours.components is not None
    signs = np.sign((ours.components * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.components, theirs.components_ * signs[:, None], atol=1e-5)
    clip = clips[4]
    expected = theirs.transform(by_loop(clip.frames, pool)) * signs
    np.testing.assert_allclose(ours.apply(clip).frames, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", [1, 4])
@pytest.mark.parametrize("block", [5, 2048])
def test_standardised_features_are_scikit_learns(pool, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    clips = made_clips()
    theirs = StandardScaler().fit(stacked(clips, pool))
    ours = Transform.fit(clips, pool, standardise=True)
    np.testing.assert_allclose(ours.scale, theirs.scale_, rtol=1e-6)
    expected = theirs.transform(by_loop(clips[4].frames, pool))
    np.testing.assert_allclose(ours.apply(clips[4]).frames, expected, rtol=1e-4, atol=1e-5)


def test_standardised_components_have_unit_variance_on_what_they_were_fitted_on():
    clips = made_clips()
    ours = Transform.fit(clips, 2, pca=4, standardise=True)
    out = np.concatenate([ours.apply(clip).frames for clip in clips]).astype(np.float64)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(out.T, bias=True), np.eye(4), atol=1e-5)
    projected = PCA(4, svd_solver="full").fit_transform(stacked(clips, 2))
    np.testing.assert_allclose(np.abs(out), np.abs(StandardScaler().fit_transform(projected)), atol=1e-4)


def test_the_largest_loading_of_each_component_is_positive():
    components = Transform.fit(made_clips(), pca=DIM).components
    assert components is not None
    assert (components[np.arange(DIM), np.abs(components).argmax(1)] > 0).all()


def test_means_far_above_the_deviations_cost_no_precision():
    clips = made_clips(offset=1e4)
    exact = stacked(clips)
    np.testing.assert_allclose(Transform.fit(clips, standardise=True).scale, exact.std(0), rtol=1e-9)


def test_what_never_changes_is_centred_and_not_blown_up():
    clips = [replace(c, frames=np.concatenate([c.frames, np.full_like(c.frames, 0.1)], 1)) for c in made_clips()]
    plain = Transform.fit(clips, standardise=True)
    assert plain.scale is not None
    np.testing.assert_array_equal(plain.scale[DIM:], 1.0)
    np.testing.assert_allclose(plain.apply(clips[3]).frames[:, DIM:], 0, atol=1e-7)
    whole = Transform.fit(clips, pca=2 * DIM, standardise=True)  # of which half have no variance
    assert np.abs(np.concatenate([whole.apply(clip).frames for clip in clips])).max() < 10


def test_vad_is_pooled_and_the_rest_is_left_alone():
    for clip in made_clips(number=4):
        out = Transform.fit(made_clips(), 3, pca=2).apply(clip)
        assert out.vad is not None
        np.testing.assert_allclose(out.vad, by_loop(clip.vad, 3), rtol=1e-6)
        assert (out.id, out.seconds) == (clip.id, clip.seconds)
        np.testing.assert_array_equal(out.vad_pooled, clip.vad_pooled)


@pytest.mark.parametrize("marked", [False, True])
def test_mean_and_spread_of_a_window_stand_side_by_side(marked):
    rng = np.random.default_rng(3)
    frames, valid = rng.normal(5, 2, (23, 4)).astype(np.float32), rng.random(23) < 0.6
    valid[8:12] = False
    frames = np.where(valid[:, None], frames, 0) if marked else frames
    found = pooled(frames, 4, valid if marked else None, ("mean", "std"))
    for i, row in enumerate(found):
        window = frames[4 * i : 4 * i + 4].astype(np.float64)
        window = window[valid[4 * i : 4 * i + 4]] if marked else window
        expected = np.concatenate([window.mean(0), window.std(0)]) if len(window) else np.zeros(8)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled(frames, 4, valid if marked else None, ("std",)), found[:, 4:])


def test_a_clip_of_one_frame_stays_one_frame():
    clip = made_clips()[0]
    assert len(clip.frames) == 1
    np.testing.assert_array_equal(Transform(5).apply(clip).frames, clip.frames)
    assert Transform.fit(made_clips(), 5, pca=2, standardise=True).apply(clip).frames.shape == (1, 2)


def test_one_training_frame_is_centred_only():
    clip = made_clips()[0]
    np.testing.assert_array_equal(Transform.fit([clip], standardise=True).apply(clip).frames, 0)


def test_nothing_is_read_where_nothing_is_fitted():
    def never():
        raise AssertionError
        yield

    assert Transform.fit(never(), 5).to_arrays() == {}


@pytest.mark.parametrize(("pca", "standardise"), [(None, False), (3, False), (None, True), (3, True)])
def test_a_transform_survives_being_stored(pca, standardise):
    clips = made_clips()
    fitted = Transform.fit(clips, 2, pca, standardise)
    recipe = {"pool": 2, "standardise": standardise} | ({"pca": pca} if pca else {})
    again = Transform.from_arrays(fitted.to_arrays(), recipe)
    for clip in clips:
        np.testing.assert_array_equal(again.apply(clip).frames, fitted.apply(clip).frames)


@pytest.mark.parametrize("name", ["mean", "components", "scale"])
@pytest.mark.parametrize("change", [lambda a: a[:-1], lambda a: a * np.nan, None], ids=["cut", "nan", "gone"])
def test_an_incomplete_transform_is_refused(name, change):
    arrays = Transform.fit(made_clips(), pca=3, standardise=True).to_arrays()
    array = arrays.pop(name)
    if change is not None:
        arrays[name] = change(array)
    with pytest.raises(CacheFormatError, match=r"is incomplete: its \w+ is missing or not of shape .*emi cache derive"):
        Transform.from_arrays(arrays, {"pool": 1, "pca": 3, "standardise": True})


@pytest.mark.parametrize(
    ("clips", "pca", "message"),
    [
        (made_clips(), 8, "--pca 8: a frame has 7 features.*give at most --pca 7"),
        (made_clips(number=1), 2, "--pca 2: the training clips have 1 frames.*smaller --pca or --pool"),
        ([], 2, "no training clips.*--train"),
    ],
)
def test_too_little_to_fit_on_says_what_to_give(clips, pca, message):
    with pytest.raises(DeriveError, match=message):
        Transform.fit(clips, pca=pca)


def test_features_of_another_dimension_are_refused():
    with pytest.raises(CacheFormatError, match="'000' has 5 features per frame, and the transform was fitted on 7"):
        Transform.fit(made_clips(), pca=2).apply(made_clips(dim=5)[0])


def test_a_training_set_is_named_by_its_ids_and_bytes_in_any_order():
    name = training_set({"a": 1, "b": 2})
    assert name == training_set({"b": 2, "a": 1})
    assert len({name, training_set({"a": 1}), training_set({"a": 1, "b": 3}), training_set({"a": 1, "c": 2})}) == 4


def test_deriving_needs_numpy_only():
    code = "import sys, cache.derive.derived; print({'torch', 'scipy', 'sklearn'} & set(sys.modules) or 'LIGHT')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "LIGHT\n"
