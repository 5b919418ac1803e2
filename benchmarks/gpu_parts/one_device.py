"""Two processes on one device: two that extract into one cache, and two that share every step of fine-tuning."""

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.material import audeering, labels, make_both, random_targets, small, speech_lengths, voices
from benchmarks.gpu_parts.resume import difference, read_cache, read_run, without_pictures

WINDOW = 128
"""Clips that one process takes at a time: fewer than two of these would leave the other without work."""
CLOSE = 1e-3
"""Two processes sum the loss and its gradient in another order, and a step of AdamW makes more of that."""


def measure(setup: Setup, tell: Tell) -> None:
    """Tell what two processes give beside one, and how fast."""
    setup.in_child(make_both, setup)
    extracting(setup, tell)
    tuning(setup, tell)


def extracting(setup: Setup, tell: Tell) -> None:
    """`emi extract --processes 2`; the features are those of one process, byte for byte."""
    count = WINDOW + 2 if setup.quick else 4 * WINDOW
    seconds = [0.1] * count if setup.quick else speech_lengths(count).tolist()
    clips = voices(setup.folder / "clips", seconds)
    backbone = "silero" if setup.quick else str(audeering(setup))
    took: dict[int, float] = {}
    for processes in (1, 2):
        started = time.perf_counter()
        child = setup.child(extract_with, setup, clips, backbone, processes, place(setup, processes))
        child.start()
        child.join(setup.seconds_left)
        took[processes] = time.perf_counter() - started
        if child.exitcode != 0:
            tell({"name": f"extraction, {processes} processes", "exit_code": child.exitcode, "passed": False})
            return
    apart = difference(*(read_cache(place(setup, processes)) for processes in (1, 2)))
    tell(
        {
            "name": "extraction, two processes on one device",
            "clips": count,
            "x_real_time": {f"{n} processes": sum(seconds) / s for n, s in took.items()},
            "differ_by": apart,
            "passed": apart == 0.0,
        }
    )


def place(setup: Setup, processes: int) -> Path:
    """Where a cache lies."""
    return setup.folder / f"by-{processes}.zarr"


def extract_with(setup: Setup, clips: Path, backbone: str, processes: int, cache: Path) -> None:
    """A whole extraction, in a process of its own: what loads a backbone here holds memory on the device."""
    import emi

    emi.extract(clips, cache, backbone=backbone, device=setup.device, processes=processes)


def tuning(setup: Setup, tell: Tell) -> None:
    """One step without dropout, by one process and by two, as torchrun would start them.

    `emi finetune --processes 2` wants a GPU for each, since NCCL does; here the two speak by gloo, which does not mind.
    """
    count = 8 if setup.quick else 32
    voices(setup.folder / "labelled", [0.4 + 0.02 * i for i in range(count)])
    for name, part in (("train", range(count // 2)), ("valid", range(count // 2, count))):
        labels(setup.folder / f"{name}.csv", [str(i) for i in part], random_targets(len(part)))
    took: dict[str, float] = {}
    for way, ranks in (("alone", 1), ("together", 2)):
        started = time.perf_counter()
        children = [setup.child(tune, setup, setup.folder / way, rank, ranks) for rank in range(ranks)]
        for child in children:
            child.start()
        for child in children:
            child.join(setup.seconds_left)
        took[way] = time.perf_counter() - started
        if any(child.exitcode != 0 for child in children):
            codes = [child.exitcode for child in children]
            tell({"name": f"fine-tuning {way}", "exit_codes": codes, "passed": False})
            return
    alone, together = (read_run(setup.folder / way) for way in ("alone", "together"))
    apart = {name: float(np.abs(alone[name] - together[name]).max()) for name in ("losses", "predictions")}
    tell(
        {
            "name": "fine-tuning, two processes on one device",
            "seconds": took,
            "losses_differ_by": apart["losses"],
            "predictions_differ_by": apart["predictions"],
            "passed": max(apart.values()) <= CLOSE,
        }
    )
    if setup.device == "cuda":
        refusing(setup, tell)


def tune(setup: Setup, out: Path, rank: int, ranks: int) -> None:
    """`emi.finetune` as one of several processes."""
    import torch.distributed as dist

    if ranks > 1:
        both = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}
        os.environ |= {name: str(value) for name, value in both.items()} | {"GLOO_SOCKET_IFNAME": "lo"}
        store = dist.FileStore(str(setup.folder / "store"), ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    finetune(setup, out, processes=1)


def finetune(setup: Setup, out: Path, processes: int) -> None:
    """The step that is compared."""
    import emi

    without_pictures()
    files = (setup.folder / name for name in ("labelled", "train.csv", "valid.csv"))
    emi.finetune(
        *files,
        out,
        backbone=str(small(setup)),
        audio=out.with_name(f"{out.name}-audio"),
        device=setup.device,
        precision="fp32",
        processes=processes,
        freeze="none",
        hidden=16,
        epochs=1,
        dropout=0.0,
        backbone_dropout=0.0,
    )


def refusing(setup: Setup, tell: Tell) -> None:
    """More processes than GPUs are refused in a sentence; in a process of its own, as asking for their number is."""
    said = setup.folder / "refused.txt"
    child = setup.child(ask_for_too_many, setup, said)
    child.start()
    child.join(setup.seconds_left)
    sentence = said.read_text() if said.is_file() else ""
    tell({"name": "more processes than GPUs", "said": sentence, "passed": "need as many GPUs" in sentence})


def ask_for_too_many(setup: Setup, said: Path) -> None:
    """Write down what `emi.finetune` says."""
    import torch

    from cache.errors import EmiError

    try:
        finetune(setup, setup.folder / "refused", processes=torch.cuda.device_count() + 1)
    except EmiError as error:
        said.write_text(str(error))
