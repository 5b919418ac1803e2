"""`--engine ray` on a real Ray cluster: two nodes of one CPU, each with a raylet of its own, on this machine."""

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import emi
import extract.plan
from cache import open_cache
from extract import run
from extract.errors import BackboneError, ExtractProcessError, ExtractSettingsError
from extract.plan import plan
from extract.settings import ExtractSettings
from extract.workers import ray_engine
from extract.workers.ray_actor import Job, WindowFiller

ray = pytest.importorskip("ray")
STORE_BYTES = 100 << 20


@pytest.fixture(scope="session")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors that are made here
    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_log_monitor": False}
    made = Cluster(initialize_head=True, head_node_args={"include_dashboard": False, **node})
    made.add_node(**node)
    yield made
    made.shutdown()


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)


@pytest.fixture(scope="session")
def many(tmp_path_factory, clips):
    """Forty clips, of which one cannot be decoded."""
    root = tmp_path_factory.mktemp("many")
    files = sorted(clips.rglob("*.wav"))
    for i in range(39):
        (root / f"{i:05d}.wav").hardlink_to(files[i % len(files)])
    (root / "bad.wav").write_bytes(b"no audio")
    return root


@pytest.fixture
def local(tmp_path, many, read_cache, small_windows):
    """What the local engine makes of the clips."""
    emi.extract(many, tmp_path / "local.zarr", dtype="float32")
    return read_cache(tmp_path / "local.zarr")


def actors_of(cluster, title=b"ray::WindowFiller") -> list[int]:
    """Process ids of the actors of this cluster."""
    raylets = {p.process.pid for node in cluster.list_all_nodes() for p in node.all_processes.get("raylet", [])}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(title):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                found += [int(entry.name)] if parent in raylets else []
        except OSError:  # it has ended
            continue
    return found


def clips_in_segments(path) -> int:
    """Clips in committed segments with duplicates, which readers pass over."""
    metadata = Path(path).glob("segments/*/zarr.json")
    return sum(json.loads(file.read_text())["attributes"]["clips"] for file in metadata)


def test_an_actor_that_is_killed_is_replaced_and_nothing_is_lost(
    tmp_path, cluster, many, local, read_cache, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the paths of the cache and the media are relative
    seen, killed = [], []

    def kill_one(done, total, seconds):
        seen.append(done)
        if done >= 6 and not killed and (filling := actors_of(cluster, b"ray::WindowFiller.fill")):
            killed.append(filling[0])
            os.kill(filling[0], signal.SIGKILL)

    media = os.path.relpath(many)
    settings = ExtractSettings(dtype="float32", engine="ray", address=cluster.address)
    summary = run.extract(media, "ray.zarr", settings, on_progress=kill_one)
    assert read_cache("ray.zarr") == local
    assert (summary.written, seen, killed != []) == (39, list(range(1, 41)), True)
    assert [(failure.id, failure.path) for failure in summary.failures] == [("bad", f"{media}/bad.wav")]
    (note,) = summary.notes
    assert f"process {killed[0]}" in note
    assert "worker process has died" in note
    assert clips_in_segments("ray.zarr") == 39
    assert summary.stats.computed > 0
    assert not ray.is_initialized()


def extract_on(cluster, media, cache, **options):
    """With float32, so that no rounding hides a difference."""
    on_progress = options.pop("on_progress", None)
    settings = ExtractSettings(dtype="float32", engine="ray", address=cluster.address, **options)
    return run.extract(media, cache, settings, on_progress=on_progress)


@pytest.mark.slow
def test_a_node_that_is_removed_loses_no_clip(tmp_path, cluster, many, local, read_cache):
    node, taken = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES), []

    def take_away(done, total, seconds):
        if done >= 6 and not taken:
            cluster.remove_node(node, allow_graceful=False)
            taken.append(done)

    summary = extract_on(cluster, many, tmp_path / "ray.zarr", on_progress=take_away)
    assert taken
    assert read_cache(tmp_path / "ray.zarr") == local
    assert summary.written == 39
    assert all("node has died" in note for note in summary.notes)


class DiesBeforeItReports(WindowFiller):
    """Is killed when its first window is committed and nobody knows, unless that has happened once."""

    def fill(self, windows):
        marker = Path(self._writer._container.path).with_suffix(".killed")
        for report in super().fill(windows):
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield report


@pytest.mark.slow
def test_clips_that_a_lost_actor_committed_are_not_computed_again(
    tmp_path, cluster, many, local, read_cache, monkeypatch
):
    monkeypatch.setattr(ray_engine, "WindowFiller", DiesBeforeItReports)
    seen = []
    summary = extract_on(cluster, many, tmp_path / "ray.zarr", on_progress=lambda *state: seen.append(state[0]))
    assert read_cache(tmp_path / "ray.zarr") == local
    assert clips_in_segments(tmp_path / "ray.zarr") == summary.written == 39
    assert seen == list(range(1, 41))
    assert len(summary.notes) == 1


class DiesOverOneClip(WindowFiller):
    """Is killed by the window of clip 00004."""

    def fill(self, windows):
        for window in windows:
            if any(source.id == "00004" for source in window.sources):
                os.kill(os.getpid(), signal.SIGKILL)
            yield from super().fill([window])


@pytest.mark.slow
def test_a_window_that_kills_every_actor_is_named_and_the_others_are_done(tmp_path, cluster, many, local, monkeypatch):
    monkeypatch.setattr(ray_engine, "WindowFiller", DiesOverOneClip)
    with pytest.raises(ExtractProcessError, match=r"given the clips '00004' to '00005' was lost .*The same command"):
        extract_on(cluster, many, tmp_path / "ray.zarr")
    assert local.keys() - set(open_cache(tmp_path / "ray.zarr").ids) == {"00004", "00005"}


@pytest.mark.slow
def test_an_interrupted_run_lets_its_actors_commit_and_the_rest_is_done_later(
    tmp_path, cluster, clips, tiny, read_cache, small_windows
):
    tiny.save_audeering(tmp_path / "model")
    backbone = {"backbone": str(tmp_path / "model"), "precision": "fp32"}

    def interrupt(done, total, seconds):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_on(cluster, clips, tmp_path / "ray.zarr", **backbone, on_progress=interrupt)
    ends = time.monotonic() + 20
    while actors_of(cluster) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not actors_of(cluster)
    emi.extract(clips, tmp_path / "local.zarr", dtype="float32", **backbone)
    assert emi.extract(clips, tmp_path / "ray.zarr", dtype="float32", **backbone).present >= 2
    assert read_cache(tmp_path / "ray.zarr") == read_cache(tmp_path / "local.zarr")


class FailsToLoad(WindowFiller):
    """Finds the checkpoint damaged."""

    def load(self, _):
        raise BackboneError("the weights are damaged")


@pytest.mark.slow
def test_an_error_of_an_actor_reaches_the_caller(tmp_path, cluster, clips, monkeypatch):
    monkeypatch.setattr(ray_engine, "WindowFiller", FailsToLoad)
    with pytest.raises(BackboneError, match=r"^the weights are damaged$"):
        extract_on(cluster, clips, tmp_path / "f.zarr")


@pytest.mark.slow
def test_a_machine_without_emi_is_named(tmp_path, cluster, clips, monkeypatch):
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract" / "__init__.py").write_text("raise ModuleNotFoundError('no emi here')")
    monkeypatch.chdir(tmp_path)  # Ray puts this in front of what its workers import from
    with pytest.raises(ExtractProcessError, match=r"cannot import emi .*install the same version"):
        extract_on(cluster, clips, tmp_path / "f.zarr")


@pytest.mark.slow
def test_without_an_address_a_cluster_is_started_and_ended(tmp_path, many, local, read_cache):
    def alive():
        assert ray.is_initialized()
        return ray.nodes()

    nodes = []
    settings = ExtractSettings(dtype="float32", engine="ray", processes=1)
    run.extract(many, tmp_path / "ray.zarr", settings, on_progress=lambda *_: nodes.append(len(alive())))
    assert set(nodes) == {1}
    assert not ray.is_initialized()
    assert read_cache(tmp_path / "ray.zarr") == local


def test_an_actor_on_a_machine_that_lacks_something_names_it(tmp_path, clips):
    emi.extract(clips, tmp_path / "f.zarr")
    planned = plan(clips, tmp_path / "f.zarr", ExtractSettings())
    job = Job(
        cache=str(tmp_path / "f.zarr"),
        media=clips / "00001.wav",
        header=planned.header,
        identity=planned.identity,
        settings=ExtractSettings(device="cpu"),
    )
    older = replace(planned.header, provenance={**planned.header.provenance, "emi": "0.0.1"})
    for change, message in (
        ({"media": Path("/nowhere/a.wav")}, "sees no /nowhere/a.wav; mount the media at the same path"),
        ({"cache": str(tmp_path / "none.zarr")}, r"sees no .*none\.zarr; share its folder"),
        ({"header": older}, r"this run was planned by 0\.0\.1; install the same"),
    ):
        with pytest.raises(ExtractProcessError, match=message):
            WindowFiller().load(replace(job, **change))
    assert not (tmp_path / "none.zarr").exists()


@pytest.mark.parametrize("cache", ["f.h5", "memory://f.zarr"])
def test_caches_of_one_process_are_refused(tmp_path, clips, cache):
    with pytest.raises(ExtractSettingsError, match=r"--engine ray: .*use a cache NAME\.zarr"):
        emi.extract(clips, cache if "://" in cache else tmp_path / cache, engine="ray")
    with pytest.raises(ExtractSettingsError, match="--processes 2: "):
        emi.extract(clips, cache if "://" in cache else tmp_path / cache, processes=2)


@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:9", "refused"), ("ray://127.0.0.1:10001", "not auto or HOST:PORT")]
)
def test_a_cluster_that_does_not_answer_is_an_error_that_says_so(tmp_path, clips, address, reason):
    with pytest.raises(ExtractSettingsError, match=f"no Ray cluster answers at {address} .*{reason}"):
        emi.extract(clips, tmp_path / "f.zarr", engine="ray", address=address)
    assert not (tmp_path / "f.zarr").exists()


def test_an_address_needs_the_engine():
    with pytest.raises(ExtractSettingsError, match="add --engine ray"):
        ExtractSettings(address="auto")


def test_without_ray_the_error_says_what_to_install(tmp_path, clips, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExtractSettingsError, match=r"pip install 'emi-mimicry\[ray\]'"):
        emi.extract(clips, tmp_path / "f.zarr", engine="ray")
