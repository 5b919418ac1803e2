"""Planning of batches, and the pipeline of decoding threads, backbone threads and the caller."""

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from extract.audio.media import Waveform
from extract.audio.modality import AUDIO, Audio
from extract.backbones import Features
from extract.clips import extract_clips
from extract.errors import MediaError
from extract.failures import Failure
from extract.plan import plan_batches, windows
from extract.sources import Source
from extract.stats import PipelineStats


@given(lengths=st.lists(st.integers(1, 400_000), max_size=60), bound=st.floats(0.01, 300))
def test_every_clip_is_in_one_batch_longest_first_and_within_the_bound(lengths, bound):
    batches = plan_batches(lengths, bound * 16_000)
    flat = [i for batch in batches for i in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= bound * 16_000


@given(lengths=st.lists(st.integers(1, 400_000), min_size=1, max_size=60))
def test_batches_are_not_smaller_than_they_must_be(lengths):
    for first, second in zip(batches := plan_batches(lengths, 48.0 * 16_000), batches[1:], strict=False):
        assert (len(first) + 1) * lengths[first[0]] > 48.0 * 16_000
        assert lengths[first[-1]] >= lengths[second[0]]


@given(count=st.integers(0, 700), max_seconds=st.floats(0.1, 5000))
def test_windows_hold_every_source_in_order_and_a_bounded_length(count, max_seconds):
    cut = windows(range(count), AUDIO, max_seconds)
    assert [source for window in cut for source in window] == list(range(count))
    assert all(1 <= len(window) <= 128 for window in cut)
    assert all(len(window) == 1 or len(window) * max_seconds <= 1536 for window in cut)


class Counting:
    """A backbone that notes its batches: every frame of a clip is its length. It has memory for `fits` samples."""

    pads = False

    def __init__(self, fits=10**9):
        self.batches = []
        self.fits = fits

    def __call__(self, waveforms):
        self.batches.append([len(w) for w in waveforms])
        if sum(self.batches[-1]) > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return Features(torch.cat([torch.full((1, 2), float(len(w))) for w in waveforms]), [1] * len(waveforms))


@pytest.fixture
def pipeline():
    """Run `extract_clips` over made-up clips; "bad…" cannot be decoded. Returns the generator, backbone and decoded."""
    decoded = []

    def read(source, max_seconds, options):
        decoded.append(source.id)
        if source.id.startswith("bad"):
            raise MediaError("is bad")
        if source.id.startswith("bug"):
            raise ZeroDivisionError("rate is 0")
        return Waveform(np.zeros(100 + int(source.id[-3:]), np.float32), seconds=1.0)

    class MadeUp(Audio):
        def reader(self):
            return read

    def start(names, window=4, fits=10**9, **options):
        sources = [Source(name, Path(name)) for name in names]
        planned = [sources[i : i + window] for i in range(0, len(sources), window)]
        backbone = Counting(fits)
        defaults = {"device": torch.device("cpu"), "max_seconds": 12.0, "batch_seconds": 1e-9, "workers": 2}
        return extract_clips(planned, backbone, MadeUp(), **defaults | options), backbone, decoded

    return start


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("decode", "backbone"))]


@pytest.mark.parametrize("parallel_batches", [1, 3])
def test_every_clip_comes_out_once_with_its_own_features(pipeline, parallel_batches):
    names = [f"{i:03d}" for i in range(30)]
    results, _, _ = pipeline(names, parallel_batches=parallel_batches)
    clips = {clip.id: float(clip.frames[0, 0]) for clip in results}
    assert clips == {name: 100 + int(name) for name in names}
    assert threads() == []


def test_a_done_clip_is_computed_with_its_batch_but_not_yielded(pipeline):
    results, backbone, _ = pipeline(["000", "001", "002", "003"], batch_seconds=1.0, done={"001"})
    assert {clip.id for clip in results} == {"000", "002", "003"}
    assert backbone.batches == [[103, 102, 101, 100]]


def test_done_windows_and_batches_are_not_decoded_or_computed(pipeline):
    names = [f"{i:03d}" for i in range(8)]
    results, backbone, decoded = pipeline(names, done=set(names[:4]) | {"006"})
    assert {clip.id for clip in results} == {"004", "005", "007"}
    assert sorted(decoded) == names[4:]
    assert sorted(backbone.batches) == [[104], [105], [107]]


def test_a_clip_that_cannot_be_decoded_is_a_failure_among_the_others(pipeline):
    results = list(pipeline(["000", "bad1", "002"])[0])
    assert [r for r in results if isinstance(r, Failure)] == [Failure("bad1", "bad1", "is bad")]
    assert {r.id for r in results} == {"000", "bad1", "002"}


def test_a_clip_that_is_done_and_now_unreadable_is_no_failure(pipeline):
    results, _, _ = pipeline(["000", "bad1", "002"], done={"bad1"})
    assert {r.id for r in results} == {"000", "002"}


def test_decoding_runs_at_most_two_windows_ahead(pipeline):
    """So memory does not grow with the number of clips."""
    results, _, decoded = pipeline([f"{i:03d}" for i in range(400)])
    next(results)
    assert len(decoded) <= 3 * 4
    results.close()
    assert threads() == []


def test_closing_the_generator_ends_its_threads_and_restores_torchs(pipeline):
    before = torch.get_num_threads()
    results, _, _ = pipeline([f"{i:03d}" for i in range(40)], parallel_batches=2)
    next(results)
    assert torch.get_num_threads() == 1
    results.close()
    assert threads() == []
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_error_thrown_in_or_raised_by_the_backbone_ends_the_threads(pipeline, kind):
    results, backbone, _ = pipeline([f"{i:03d}" for i in range(40)])
    with pytest.raises(kind):
        results.throw(kind())
    results, backbone, _ = pipeline([f"{i:03d}" for i in range(40)])
    backbone.batches = None  # its next call fails
    with pytest.raises(AttributeError):
        list(results)
    assert threads() == []


def test_a_file_that_breaks_the_decoder_is_a_failure_that_names_it(pipeline):
    results = list(pipeline(["000", "bug1", "002"])[0])
    assert [r for r in results if isinstance(r, Failure)] == [
        Failure("bug1", "bug1", "broke its decoder (ZeroDivisionError: rate is 0)")
    ]
    assert {r.id for r in results} == {"000", "bug1", "002"}


def test_neighbours_of_a_clip_that_still_cannot_be_read_are_not_decoded_again(pipeline):
    results, _, decoded = pipeline(["000", "001", "bad1", "003"], done={"000", "001", "003"})
    assert [r.id for r in results] == ["bad1"]
    assert decoded == ["bad1"]


def test_a_clip_that_can_be_read_again_is_computed_with_its_whole_batch(pipeline):
    results, backbone, decoded = pipeline(["000", "001", "002"], batch_seconds=1.0, done={"000", "001"})
    assert [r.id for r in results] == ["002"]
    assert sorted(decoded) == ["000", "001", "002"]
    assert backbone.batches == [[102, 101, 100]]


def test_a_batch_that_does_not_fit_into_memory_is_halved_and_so_are_later_ones(pipeline):
    stats = PipelineStats()
    names = [f"{i:03d}" for i in (10, 11, 12, 13, 0, 1, 2, 3)]
    results, backbone, _ = pipeline(names, fits=250, batch_seconds=1.0, stats=stats)
    assert {clip.id: clip.frames[0, 0] for clip in results} == {name: 100 + int(name) for name in names}
    assert [len(batch) for batch in backbone.batches] == [4, 2, 2, 2, 2]  # the second window is not tried whole
    assert stats.halved_to == (113 + 112) / 16_000


def test_a_clip_that_never_fits_is_a_failure_and_the_others_are_computed(pipeline):
    results = list(pipeline(["000", "001", "050", "003"], fits=110, batch_seconds=1.0)[0])
    (failure,) = [r for r in results if isinstance(r, Failure)]
    assert failure.id == "050"
    assert "more memory" in failure.reason
    assert {r.id for r in results} == {"000", "001", "003", "050"}


def test_the_seconds_of_the_stages_are_those_of_the_run(pipeline):
    stats = PipelineStats()
    results, _, _ = pipeline([f"{i:03d}" for i in range(8)], stats=stats)
    started = time.monotonic()
    for _ in results:
        time.sleep(0.02)
    assert stats.decode + stats.device + stats.write == pytest.approx(time.monotonic() - started, rel=0.3)
    assert stats.write >= 8 * 0.02
    assert stats.computed == sum(100 + i for i in range(8))
    assert stats.padding == 0
    shares = re.fullmatch(r"decode (\d+) % · device (\d+) % · write (\d+) %", stats.waiting())
    assert 99 <= sum(map(int, shares.groups())) <= 101


def test_padding_is_counted_where_a_backbone_pads(pipeline):
    stats = PipelineStats()
    results, backbone, _ = pipeline(["000", "002"], batch_seconds=1.0, stats=stats)
    backbone.pads = True
    list(results)
    assert (stats.computed, stats.padding) == (202, 2)


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float16, torch.float32), (torch.float32, torch.float32)])
def test_frames_that_overflow_the_storage_dtype_stay_as_they_are(pipeline, dtype, kept):
    results, _, _ = pipeline(["000"], dtype=dtype)
    assert torch.from_numpy(next(results).frames).dtype == dtype
    results, backbone, _ = pipeline(["000"], dtype=dtype)
    backbone.fits = 0
    backbone.__class__ = type("Large", (Counting,), {"__call__": lambda *_: Features(torch.full((1, 2), 1e6), [1])})
    assert torch.from_numpy(next(results).frames).dtype == kept


def test_a_clip_that_only_fits_alone_is_computed_alone(pipeline):
    lock, on_device = threading.Lock(), []

    class Crowded(Counting):
        def __call__(self, waveforms):
            with lock:
                on_device.append(1)
                full = len(on_device) > 1
            try:
                time.sleep(0.01)
                if full:
                    raise RuntimeError("CUDA error: out of memory")
                return super().__call__(waveforms)
            finally:
                with lock:
                    on_device.pop()

    results, backbone, _ = pipeline([f"{i:03d}" for i in range(20)], parallel_batches=2)
    backbone.__class__ = Crowded
    assert not [r for r in results if isinstance(r, Failure)]
