"""Share an extraction between the machines of a Ray cluster, or the cores of this one: an actor per GPU or CPU core.

What is lent to an actor are windows (`extract.plan`): batches are planned within one, so the bytes of a clip are those
of the local engine, whichever actor computes it. An actor commits a window before it reports it. The windows of an
actor that is lost, with its machine or alone, go to another, which computes what was not committed.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cache.paths import at_home
from cache.system.machine import available_cores
from cache.writer import CacheWriter
from extract.backbones import family_of
from extract.backbones.speech.family import TRANSFORMERS
from extract.errors import ExtractSettingsError
from extract.settings import ExtractSettings
from extract.stats import PipelineStats
from extract.workers.processes import OnResult
from extract.workers.ray_actor import Job, Window, WindowFiller
from extract.workers.ray_lending import Lender

if TYPE_CHECKING:
    from extract.run import ExtractPlan

OBJECT_STORE_BYTES = 128 << 20
"""Of the cluster that is started here; only reports pass through it, and Ray's own default is a third of the memory."""


def run_ray(
    plan: "ExtractPlan", settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult
) -> list[str]:
    """Fill the cache of a plan with the actors of a cluster.

    Args:
        plan: what is to be done.
        settings: how; `address` names the cluster, or None starts one on this machine for the run.
        cache: its path, created where missing.
        stats: what the actors waited for is added, as they go on.
        on_result: called for every clip of a window that is committed.

    Returns:
        A sentence for each actor that was lost.

    Raises:
        ExtractSettingsError: there is no such cluster, or it has not what was asked for.
        ExtractProcessError: windows whose actors were lost again and again, or no actor could be had.
        Exception: what an actor raised.
    """
    import ray

    with _connected(ray, settings.address):
        resource, count = _actors(ray, settings)
        with CacheWriter(cache, plan.header):
            pass  # made once, before many open it
        job = Job(
            cache=cache if "://" in cache else os.path.abspath(cache),
            media=next((source.path.absolute() for source in plan.sources if source.path.exists()), None),
            header=plan.header,
            identity=replace(plan.identity, source=_everywhere(plan.identity.source)),
            settings=_for_actors(ray, settings, resource),
            refresh=plan.refresh,
        )
        takes = {"num_cpus": 1, "num_gpus": int(resource == "GPU"), "max_restarts": 0, "max_concurrency": 2}
        lender = Lender(ray, ray.remote(**takes)(WindowFiller).remote, job, stats, on_result)
        todo = _windows(plan)
        with contextlib.closing(lender):
            lender.lend_all(todo, min(count, len(todo)))
    return lender.notes


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Use the connection that there is, or make one and end it, and with it a cluster that was started for it."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where: dict[str, Any] = {"address": address}
    if address is None:
        here = {"num_cpus": available_cores(), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
        where = {"address": "local", **here}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _refuse_silence(address)
        ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExtractSettingsError(
            f"no Ray cluster answers at {address or 'this machine'} ({' '.join(str(error).split())}); `ray start "
            "--head` starts one, and without --address one is started here for the run"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's would end the run without letting go of anything
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_silence(address: str | None) -> None:
    """Raise where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    host, _, port = (address or "").rpartition(":")
    if "://" in host or (host and not port.isdecimal()):
        raise ValueError("it is not auto or HOST:PORT; run this on a machine of the cluster")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _actors(ray: ModuleType, settings: ExtractSettings) -> tuple[str, int]:
    """What each actor takes one of, "GPU" or "CPU", and how many actors there can be."""
    there = {
        resource: sum(int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"])
        for resource in ("GPU", "CPU")
    }
    if settings.device == "cuda" and not there["GPU"]:
        raise ExtractSettingsError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    resource = "GPU" if there["GPU"] and settings.device != "cpu" else "CPU"
    if not there["CPU"]:
        raise ExtractSettingsError("the Ray cluster has no CPU to lend; `ray status` shows its machines")
    return resource, min(there[resource], settings.processes or there[resource])


def _for_actors(ray: ModuleType, settings: ExtractSettings, resource: str) -> ExtractSettings:
    """The settings within an actor: its one device, and as many decoders as cores fall to it."""
    have = ray.cluster_resources()
    return replace(
        settings,
        backbone=_everywhere(settings.backbone),
        device="cuda" if resource == "GPU" else "cpu",
        workers=settings.workers or max(1, int(have["CPU"] // have[resource])),
        processes=1,
        engine="local",
        address=None,
    )


def _everywhere(backbone: str) -> str:
    """A backbone's name as actors understand it, whose working folder is another."""
    folder = Path(at_home(backbone))
    return str(folder.absolute()) if family_of(backbone) is TRANSFORMERS and folder.is_dir() else backbone


def _windows(plan: "ExtractPlan") -> list[Window]:
    """The windows in which something is left to do, with what is there of each."""
    there = [frozenset(source.id for source in window if source.id in plan.present) for window in plan.windows]
    return [
        Window(number, window, done, plan.refresh.intersection(source.id for source in window))
        for number, (window, done) in enumerate(zip(plan.windows, there, strict=True))
        if len(done) < len(window)
    ]
