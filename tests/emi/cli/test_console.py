"""What long work says in a log: a line at the start, one a minute, one at the end; with a clock that tests set."""

import io
from types import SimpleNamespace

import pytest

from emi.console import Progress, TrialLines


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_at_the_start_each_minute_and_at_the_end(clock):
    stream = io.StringIO()
    with Progress("extracting", stream=stream, clock=clock) as progress:
        assert lines(stream) == []  # the backbone is being loaded
        for done in range(1, 301):
            clock.seconds += 0.5
            progress(done, 300, 7.0)
    assert lines(stream) == [
        "extracting 300 clips",
        "extracting 121 of 300 clips, 2.0 clips/s, 14 x real time, 1:30 left",
        "extracting 241 of 300 clips, 2.0 clips/s, 14 x real time, 0:30 left",
        "extracting 300 of 300 clips took 2:30, 2.0 clips/s, 14 x real time",
    ]


def test_work_of_a_moment_says_nothing_where_that_is_asked_for(clock):
    said = []
    for after in (0.0, 3.0):
        stream = io.StringIO()
        with Progress("verifying", after=after, stream=stream, clock=clock) as progress:
            clock.seconds += 2
            progress(40, 40, 0.0)
        said.append(lines(stream))
    assert said == [["verifying 40 clips", "verifying 40 of 40 clips took 0:02, 20.0 clips/s"], []]


def test_work_that_was_to_take_a_moment_and_takes_longer_begins_to_speak(clock):
    stream = io.StringIO()
    with Progress("verifying", after=1.0, stream=stream, clock=clock) as progress:
        for done in range(1, 5):
            clock.seconds += 0.5
            progress(done, 4, 0.0)
    assert lines(stream) == ["verifying 4 clips", "verifying 4 of 4 clips took 0:02, 2.0 clips/s"]


def test_work_that_never_began_says_nothing(clock):
    stream = io.StringIO()
    with Progress("decoding", stream=stream, clock=clock):
        clock.seconds += 1000
    assert lines(stream) == []


def test_work_that_stops_says_how_far_it_came(clock):
    stream = io.StringIO()
    with Progress("extracting", stream=stream, clock=clock) as progress:
        clock.seconds += 5
        progress(3, 10, 1.0)
    assert lines(stream)[-1] == "extracting stopped at 3 of 10 clips after 0:05, 36.0 clips/min, 0 x real time"


def test_a_second_round_is_counted_anew(clock):
    stream = io.StringIO()
    with Progress("reading", stream=stream, clock=clock) as progress:
        for total in (2, 3):
            for done in range(1, total + 1):
                clock.seconds += 60
                progress(done, total, float("nan"))  # media that do not say how long they are
    assert lines(stream) == [
        "reading 2 clips",
        "reading 2 of 2 clips took 2:00, 1.0 clips/min",
        "reading 3 clips",
        "reading 2 of 3 clips, 2.0 clips/min, 0:30 left",
        "reading 3 of 3 clips took 2:00, 1.5 clips/min",
    ]


def test_a_closed_standard_error_is_no_error(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", None)
    with Progress("extracting", clock=clock) as progress:
        progress(1, 2, 1.0)


def test_stages_follow_each_other(clock):
    stream = io.StringIO()
    with Progress(stream=stream, clock=clock) as progress:
        progress.stage("verifying", 2, 2, 1.0)
        clock.seconds += 4
        progress.stage("rewriting", 1, 2, 1.0)
        clock.seconds += 1
    assert progress.took == 5
    assert [line.split(",")[0] for line in lines(stream)] == [
        "verifying 2 clips",
        "verifying 2 of 2 clips took 0:00",
        "rewriting 2 clips",
        "rewriting stopped at 1 of 2 clips after 0:01",
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_per_stage_and_a_table_of_trials(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress(after=1.0, stream=stream, clock=clock) as progress:
        for name in ("verifying", "rewriting"):
            for done in (1, 2):
                clock.seconds += 1
                progress.stage(name, done, 2, 1.0)
    with TrialLines(stream, clock) as shown:
        shown(status(1))
        shown(status(3))
    text = stream.getvalue()
    assert all(part in text for part in ("verifying", "rewriting", "2/2", "2.0 clips/s", "3 of 3", "pruned"))


def status(finished: int, **more):
    counts = {"total": 3, "complete": finished, "pruned": 0, "failed": 0, "running": 1, "best": 0.5, "best_number": 0}
    return SimpleNamespace(
        **counts | {"per_minute": 2.0, "seconds_left": 90.0, "last": None, "finished": finished} | more
    )


def test_a_sweep_speaks_at_the_start_each_silent_minute_and_at_the_end(clock):
    stream = io.StringIO()
    with TrialLines(stream, clock) as shown:
        for _ in range(241):  # of half a second each
            shown(status(1))
            clock.seconds += 0.5
        shown(status(3))
        shown(status(3))
    assert lines(stream) == [
        "3 trials, 1 of them done",
        "1 running  [1/3]  best 0.500 (trial 0)  1:30 left",
        "1 running  [1/3]  best 0.500 (trial 0)  1:30 left",
        "3 of 3 trials: 3 complete, 0 pruned, 0 failed, 2.0 trials/min",
    ]
