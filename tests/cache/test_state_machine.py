"""Any order of adding, committing, crashing, reopening and reading, against a dict."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cache import CacheError, CacheWriter, UnknownClipError, open_cache

NAMES = st.sampled_from(["a", "b/c", "é", "日本/語", "x" * 70, "0"])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # what a crash does
@pytest.mark.parametrize(
    ("suffix", "examples"),
    [
        (".zarr", 6),
        (".h5", 25),
        pytest.param(".zarr", 150, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(".h5", 500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_cache_is_a_dict_that_forgets_only_what_was_not_committed(suffix, examples, make_header, make_clip, record):
    header = make_header()

    class Cache(RuleBasedStateMachine):
        @initialize()
        def open(self):
            self.folder = Path(tempfile.mkdtemp())
            self.path = self.folder / f"a{suffix}"
            self.committed, self.pending = {}, {}
            self.writer = CacheWriter(self.path, header)

        @rule(name=NAMES, frames=st.integers(1, 5))
        def add(self, name, frames):
            clip = make_clip(name, frames=frames)
            if name in self.committed | self.pending:
                with pytest.raises(CacheError, match="already in"):
                    self.writer.add(clip)
            else:
                self.writer.add(clip)
                self.pending[name] = record(header.stored(clip))

        @rule()
        def commit(self):
            self.writer.commit()
            self.committed |= self.pending
            self.pending = {}

        @rule()
        def crash(self):
            """The process is gone: its memory and its locks, and what it left half done stays."""
            self.writer = None
            self.pending = {}
            self.writer = CacheWriter(self.path, header)

        @rule()
        def reopen(self):
            self.writer.__exit__(None, None, None)
            self.committed |= self.pending
            self.pending = {}
            self.writer = CacheWriter(self.path, header)

        @rule()
        def read(self):
            with open_cache(self.path) as store:
                assert {i: record(store[i]) for i in store} == self.committed
                assert list(store) == list(self.committed)
                assert store.load(list(store))[1][-1] == sum(shape[0] for _, shape, *_ in self.committed.values())

        @precondition(lambda self: self.pending)
        @rule()
        def pending_clips_are_not_to_be_read(self):
            with open_cache(self.path) as store, pytest.raises(UnknownClipError):
                store[next(iter(self.pending))]

        @invariant()
        def the_writer_knows_what_it_has(self):
            assert self.writer.done.keys() == self.committed.keys() | self.pending.keys()

        def teardown(self):
            self.reopen()
            self.read()
            self.writer.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        Cache,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=quiet,
        ),
    )
