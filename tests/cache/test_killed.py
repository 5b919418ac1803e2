"""Killed at random moments: what was committed stays, the same command carries on, and the end is the same."""

import json
import os
import random
import signal
import time

import pytest

from cache import CacheNotFoundError, CacheWriter, open_cache


@pytest.fixture
def extract(make_header, make_clip):
    def extract(path, clip_ids, per_segment, report):
        """What `emi extract` does: pass over what is done, commit the rest by segments, and say so."""
        with CacheWriter(path, make_header()) as writer:
            os.write(report, b"[]\n")
            left = [i for i in clip_ids if i not in writer.done]
            for start in range(0, len(left), per_segment):
                segment = left[start : start + per_segment]
                for clip_id in segment:
                    writer.add(make_clip(clip_id))
                writer.commit()
                os.write(report, json.dumps(segment).encode() + b"\n")

    return extract


def kill_at_random(child, reports, rng):
    """Kill a writer a moment after one of its first reports; returns all that it had reported."""
    lines = [reports.readline() for _ in range(rng.choice([0, 1, 1, 2]))]
    time.sleep(rng.random() ** 2 * 0.05)
    os.kill(child, signal.SIGKILL)
    return lines + reports.readlines()


@pytest.mark.parametrize(
    ("kills", "clips"), [(5, 40), pytest.param(60, 400, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_nothing_committed_is_lost_and_the_end_is_that_of_an_uninterrupted_run(
    path, kills, clips, extract, fork, exit_code, make_cache, expected, contents
):
    clip_ids, rng = [f"folder/{i:05}" for i in range(clips)], random.Random(0)
    committed, code = [], None
    while code != 0:
        read, report = os.pipe()
        child = fork(extract, path, clip_ids, 4, report, seconds=600)
        os.close(report)
        with os.fdopen(read) as reports:
            lines = kill_at_random(child, reports, rng) if kills > 0 else reports.readlines()
        code = exit_code(child)
        assert code == 0 or (kills > 0 and code == -signal.SIGKILL)
        kills -= 1
        committed += [i for line in lines for i in json.loads(line)]
        try:
            found = contents(path)
        except CacheNotFoundError:
            found = {}
        assert list(found) == clip_ids[: len(found)]  # in order
        assert found == expected(found)
        assert len(found) % 4 == 0  # by whole segments
        assert len(found) >= len(committed)
    uninterrupted = make_cache(path.with_stem("uninterrupted"), clip_ids, per_segment=clips)
    assert list(contents(path).items()) == list(contents(uninterrupted).items())
    with open_cache(path) as a, open_cache(uninterrupted) as b:
        assert a.load(clip_ids)[0].tobytes() == b.load(clip_ids)[0].tobytes()


@pytest.mark.parametrize(
    ("suffix", "commits"),
    [
        (".zarr", 8),
        (".h5", 60),
        pytest.param(".zarr", 100, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
        pytest.param(".h5", 1500, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_reading_goes_on_while_another_process_commits(
    tmp_path, suffix, commits, extract, fork, exit_code, expected, contents
):
    path, clip_ids, (read, report) = tmp_path / f"a{suffix}", [str(i) for i in range(commits)], os.pipe()
    writer = fork(extract, path, clip_ids, 1, report, seconds=600)
    os.close(report)
    with os.fdopen(read) as reports:
        reports.readline()
        seen = 0
        while seen < commits:
            found = contents(path)
            assert list(found.items()) == list(expected(clip_ids[: len(found)]).items())
            assert len(found) >= seen
            seen = len(found)
    assert exit_code(writer) == 0
