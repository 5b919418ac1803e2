"""Share an extraction between the machines of a Ray cluster, or the cores of this one: an actor per GPU or CPU core.

Actors are given whole windows (`extract.plan`). Batches are planned within a window, so a clip has the bytes of the
local engine, whichever actor computes it. An actor commits a window before it reports it. If an actor is lost, alone or
with its machine, another actor computes the clips of its windows that were not committed.
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
from typing import Any

from cache.paths import at_home
from cache.system.machine import available_cores
from cache.writer import CacheWriter
from extract.backbones import family_of
from extract.backbones.speech.family import TRANSFORMERS
from extract.errors import ExtractSettingsError
from extract.failures import OnResult
from extract.plan import ExtractPlan
from extract.settings import ExtractSettings
from extract.stats import PipelineStats
from extract.workers.ray_actor import Job, Window, WindowFiller
from extract.workers.ray_scheduler import WindowScheduler

OBJECT_STORE_BYTES = 128 << 20
"""Of a cluster that is started here: only reports pass through it, and Ray's default is a third of the memory."""


def run_ray(
    plan: ExtractPlan, settings: ExtractSettings, cache: str, stats: PipelineStats, on_result: OnResult
) -> list[str]:
    """Fill the cache of a plan with the actors of a cluster.

    Args:
        plan: what is to be done.
        settings: `address` names the cluster; None starts one on this machine for the run.
        cache: its path, created where missing.
        stats: the actors' times are added during the run.
        on_result: called for every clip of a committed window.

    Returns:
        A sentence for each actor that was lost.

    Raises:
        ExtractSettingsError: there is no such cluster, or it lacks what was asked for.
        ExtractProcessError: all actors that were given a window were lost, or no actor could be started.
        Exception: raised by an actor.
    """
    import ray

    with _connected(ray, settings.address):
        resource, count = _actors(ray, settings)
        resources = ray.cluster_resources()
        actor_settings = replace(  # one device, and a share of the cores for decoding
            settings,
            backbone=_absolute(settings.backbone),
            device="cuda" if resource == "GPU" else "cpu",
            workers=settings.workers or max(1, int(resources["CPU"] // resources[resource])),
            processes=1,
            engine="local",
            address=None,
        )
        with CacheWriter(cache, plan.header):
            pass  # create the cache once, before several actors open it
        job = Job(
            cache=cache if "://" in cache else os.path.abspath(cache),
            media=next((source.path.absolute() for source in plan.sources if source.path.exists()), None),
            header=plan.header,
            identity=replace(plan.identity, source=_absolute(plan.identity.source)),
            settings=actor_settings,
            refresh=plan.refresh,
        )
        options = {"num_cpus": 1, "num_gpus": int(resource == "GPU"), "max_restarts": 0, "max_concurrency": 2}
        todo = [
            Window(number, window, done)
            for number, window in enumerate(plan.windows)
            if len(done := frozenset(source.id for source in window if source.id in plan.present)) < len(window)
        ]
        scheduler = WindowScheduler(ray, ray.remote(**options)(WindowFiller).remote, job, stats, on_result)
        with contextlib.closing(scheduler):
            scheduler.run(todo, min(count, len(todo)))
    return scheduler.notes


@contextlib.contextmanager
def _connected(ray: ModuleType, address: str | None) -> Iterator[None]:
    """Use the existing connection, or connect for a while; a cluster that is started for the run ends with it."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address or "local"}
    if address is None:
        options |= {
            "num_cpus": available_cores(),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _check_address(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExtractSettingsError(
            f"no Ray cluster answers at {address or 'this machine'} ({' '.join(str(error).split())}); `ray start "
            "--head` starts one, and without --address one is started here for the run"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray's handler would end the run without cleaning up
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Raise where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if "://" in host or (host and not port.isdecimal()):
        raise ValueError("it is not auto or HOST:PORT; run this on a machine of the cluster")
    if host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _actors(ray: ModuleType, settings: ExtractSettings) -> tuple[str, int]:
    """Return the resource of which each actor gets one, "GPU" or "CPU", and the number of actors."""
    available = {
        resource: sum(int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"])
        for resource in ("GPU", "CPU")
    }
    if settings.device == "cuda" and not available["GPU"]:
        raise ExtractSettingsError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
    resource = "GPU" if available["GPU"] and settings.device != "cpu" else "CPU"
    if not available["CPU"]:
        raise ExtractSettingsError("the Ray cluster offers no CPU; `ray status` shows its machines")
    return resource, min(available[resource], settings.processes or available[resource])


def _absolute(backbone: str) -> str:
    """Return a backbone's name with the absolute path of a folder; actors have another working folder."""
    folder = Path(at_home(backbone))
    return str(folder.absolute()) if family_of(backbone) is TRANSFORMERS and folder.is_dir() else backbone
