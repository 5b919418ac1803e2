"""Training of configs/va.toml on a synthetic Aff-Wild2, beside the loop that users write: `benchmarks/train_frames.py`.

Both read the same caches in this process, and take turns.
"""

import math
import statistics

import torch

from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.machine import peak_gib
from benchmarks.train_frames import DIMS, Case, own_loop, plain_loop

CASE = Case(clips=60, batches=30, turns=3)
QUICK = Case(clips=4, rows=700, batches=1, turns=1)


def measure(setup: Setup, tell: Tell) -> None:
    """Tell a row for each precision."""
    case = QUICK if setup.quick else CASE
    case.write(setup.folder)
    for precision in ("fp32", setup.precision) if setup.device == "cuda" else (setup.precision,):
        loops = {
            "loop": plain_loop(setup.folder, case, setup.device, precision == "bf16"),
            "emi": own_loop(setup.folder, case, setup.device, precision),
        }
        turns = [{name: turn()["rate"] for name, turn in loops.items()} for _ in range(case.turns + 1)][1:]
        times = statistics.median(turn["emi"] / turn["loop"] for turn in turns)
        tell(
            {
                "name": f"configs/va.toml, {precision}",
                "clips": case.clips,
                "dim": sum(DIMS.values()),
                "rows_per_second": statistics.median(turn["emi"] for turn in turns),
                "loop_rows_per_second": statistics.median(turn["loop"] for turn in turns),
                "times_loop": times,
                "gpu_peak_gib": peak_gib(torch.device(setup.device)),
                "passed": times >= 1 or (setup.quick and math.isfinite(times)),
            }
        )
