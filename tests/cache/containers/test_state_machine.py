"""Any order of adding, committing, compacting, damaging, repairing, crashing and reading, against a dict."""

import gc
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

from cache import CacheError, CacheLockedError, CacheWriter, DamagedCacheError, UnknownClipError, open_cache
from cache.maintenance.rewrite import compact, repair
from cache.maintenance.transfer import transfer
from cache.maintenance.verify import verify

NAMES = st.sampled_from(["a", "b/c", "é", "日本/語", "x" * 70, "0", "b", "c d", "e.f"])
STEPS = {".zarr": st.integers(1, 20) | st.integers(20, 120), ".h5": st.integers(1, 25)}
"""A commit takes about twenty changes of the disk; a compaction of Zarr removes many files."""
OTHER = {".zarr": ".h5", ".h5": ".zarr"}


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # what a crash does
@pytest.mark.parametrize(
    ("suffix", "examples"),
    [
        (".zarr", 3),
        (".h5", 6),
        pytest.param(".zarr", 120, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(".h5", 400, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_cache_is_a_dict_that_forgets_only_what_was_not_committed(
    suffix, examples, make_header, make_clip, record, contents, files_of, flipped, dies, faults, monkeypatch
):
    header = make_header()
    monkeypatch.setattr("cache.writer.SEGMENTS_PER_BLOCK", 3)

    class Cache(RuleBasedStateMachine):
        @initialize(names=st.lists(NAMES, min_size=2, max_size=4, unique=True))
        def make(self, names):
            self.folder = Path(tempfile.mkdtemp())
            self.path = self.folder / f"a{suffix}"
            self.committed, self.pending = {}, {}
            self.writer = CacheWriter(self.path, header)
            for name in names:
                self.add(name, frames=3)
                self.commit()

        def leave(self):
            """End the writer, which commits what is pending."""
            self.writer.__exit__(None, None, None)
            self.committed |= self.pending
            self.pending = {}
            self.writer = None

        def drop(self):
            """The process is gone: its memory and its locks, and what it left half done stays."""
            self.writer = None
            self.pending = {}
            gc.collect()  # an exception of a refused clip may still hold the writer, and it its lock

        def found(self):
            return list(contents(self.path).items())

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
            self.drop()
            self.writer = CacheWriter(self.path, header)

        @rule(name=NAMES, step=STEPS[suffix])
        def crash_inside_a_commit(self, name, step):
            self.add(name, frames=2)
            died = dies(step, lambda _: self.writer.commit(), self.path)
            before, after = self.committed, self.committed | self.pending
            self.drop()
            found = self.found()
            faults.survived(before if died else after, dict(found))
            assert found in ([list(before.items()), list(after.items())] if died else [list(after.items())])
            self.committed = dict(found)
            self.writer = CacheWriter(self.path, header)

        @rule()
        def reopen(self):
            self.leave()
            self.writer = CacheWriter(self.path, header)

        @rule()
        def read(self):
            assert self.found() == list(self.committed.items())
            with open_cache(self.path) as store:
                assert list(store) == list(self.committed)
                assert store.load(list(store))[1][-1] == sum(shape[0] for _, shape, *_ in self.committed.values())

        @rule()
        def all_is_sound(self):
            report = verify(self.path)
            assert (report.sound, report.clips) == (True, len(self.committed))

        @rule()
        def nothing_is_rewritten_under_a_writer(self):
            for rewrite in (compact, repair):
                with pytest.raises(CacheLockedError):
                    rewrite(self.path)

        @rule()
        def compact_all(self):
            self.leave()
            summary = compact(self.path)
            assert (summary.clips, summary.segments[1]) == (len(self.committed), min(1, len(self.committed)))
            assert self.found() == list(self.committed.items())
            assert compact(self.path).changed is False
            self.writer = CacheWriter(self.path, header)

        @rule(step=STEPS[suffix])
        def crash_inside_a_compaction(self, step):
            self.leave()
            dies(step, compact, self.path)
            faults.survived(self.committed, contents(self.path))
            assert self.found() == list(self.committed.items())
            self.writer = CacheWriter(self.path, header)

        @rule()
        def nothing_is_to_be_repaired(self):
            self.leave()
            repair(self.path)  # which may finish what a killed compaction left
            assert repair(self.path).changed is False
            assert self.found() == list(self.committed.items())
            self.writer = CacheWriter(self.path, header)

        @precondition(lambda self: self.committed)
        @rule(which=st.integers(0, 5), at=st.integers(0, 7), step=st.none() | STEPS[suffix])
        def damage_a_clip_and_repair(self, which, at, step):
            self.leave()
            name = list(self.committed)[which % len(self.committed)]
            self.damage(self.committed[name][2], at)
            with open_cache(self.path) as store, pytest.raises(DamagedCacheError):
                store[name]
            assert [clip.id for clip in verify(self.path).damaged] == [name]
            del self.committed[name]
            if step and dies(step, repair, self.path):
                with open_cache(self.path) as store:
                    faults.survived(self.committed, {i: record(store[i]) for i in store if i != name})
            repair(self.path)
            faults.survived(self.committed, contents(self.path))
            assert self.found() == list(self.committed.items())
            self.writer = CacheWriter(self.path, header)

        def damage(self, needle, at):
            """Change a byte of a clip wherever it lies, also where it does not count any more."""
            for file in files_of(self.path):
                content = file.read_bytes()
                if needle in content:
                    file.write_bytes(content.replace(needle, flipped(needle, at)))
            faults.count("flips")

        @rule()
        def convert(self):
            other = self.path.with_suffix(OTHER[suffix])
            transfer([self.path], other)
            assert list(contents(other).items()) == list(self.committed.items())
            shutil.rmtree(other) if other.is_dir() else other.unlink()

        @precondition(lambda self: self.pending)
        @rule()
        def pending_clips_are_not_to_be_read(self):
            with open_cache(self.path) as store, pytest.raises(UnknownClipError):
                store[next(iter(self.pending))]

        @invariant()
        def the_writer_knows_what_it_has(self):
            assert self.writer.done.keys() == self.committed.keys() | self.pending.keys()

        def teardown(self):
            if self.writer is not None:
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
