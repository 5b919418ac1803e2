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
    os.kill(child, signal.SIGKILL)  # which does nothing to one that has just ended
    return [line for line in [*lines, *reports] if line.strip()]


@pytest.fixture
def fill(extract, fork, exit_code, expected, contents, faults):
    def fill(path, clip_ids, kills, rng):
        """Run the same command until it gets to its end, and kill it on the way; returns how often that came off."""
        committed, killed, code = [], 0, None
        while code != 0:
            read, report = os.pipe()
            child = fork(extract, path, clip_ids, 4, report, seconds=600)
            os.close(report)
            with os.fdopen(read) as reports:
                lines = kill_at_random(child, reports, rng) if killed < kills else reports.readlines()
            code = exit_code(child)
            assert code in ((0, -signal.SIGKILL) if killed < kills else (0,))
            killed += code != 0
            committed += [i for line in lines for i in json.loads(line)]
            try:
                found = contents(path)
            except CacheNotFoundError:
                found = {}
            assert list(found) == clip_ids[: len(found)]  # in order
            assert found == expected(found)
            assert len(found) % 4 == 0  # by whole segments
            faults.survived(expected(committed), found)
        faults.count("kills", killed)
        return killed

    return fill


@pytest.mark.parametrize(
    ("kills", "clips"), [(3, 40), pytest.param(50, 400, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_nothing_committed_is_lost_and_the_end_is_that_of_an_uninterrupted_run(
    path, kills, clips, fill, make_cache, contents
):
    clip_ids, rng = [f"folder/{i:05}" for i in range(clips)], random.Random(0)
    uninterrupted = make_cache(path.with_stem("uninterrupted"), clip_ids, per_segment=clips)
    killed = 0
    while killed < kills:
        run = path.with_stem(f"killed-{killed}-times")
        killed += fill(run, clip_ids, kills - killed, rng)
        assert list(contents(run).items()) == list(contents(uninterrupted).items())
        with open_cache(run) as a, open_cache(uninterrupted) as b:
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
