"""VGGish at 25 rows per second and IResNet-50, with random weights: as on the CPU, and how fast."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.machine import layer_shape, matrix_tflops, peak_gib, synchronise
from extract.backbones.iresnet.config import IResNetConfig
from extract.backbones.iresnet.encoder import IResNetBackbone
from extract.backbones.iresnet.network import IResNet
from extract.backbones.precision import DTYPES
from extract.backbones.vggish.encoder import VggishBackbone
from extract.backbones.vggish.network import Vggish

CPU = torch.device("cpu")
Rows = Callable[[Tensor], Tensor]
ROWS = 25
SECONDS, CROPS = 240, 2880
"""Of sound and of faces: half of an extraction's batch on a GPU."""
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
"""Relative error of a row, compared with the CPU in float32."""


def measure(setup: Setup, tell: Tell) -> None:
    """Tell a row per backbone."""
    torch.manual_seed(0)
    with torch.inference_mode():
        vggish, sizes = Vggish(last_relu=False).eval(), IResNetConfig()
        if setup.quick:
            sizes = IResNetConfig(units=(1, 1, 1, 1), widths=(8, 16, 24, 32))
        iresnet = IResNet(sizes).eval()

        def rows_of_sound(place: torch.device, dtype: torch.dtype) -> Rows:
            backbone = VggishBackbone(copy.deepcopy(vggish).to(place), 1 / ROWS, place, dtype)
            return lambda samples: backbone([samples.to(place)]).frames

        def rows_of_crops(place: torch.device, dtype: torch.dtype) -> Rows:
            backbone = IResNetBackbone(copy.deepcopy(iresnet).to(place), place, dtype)
            return lambda crops: torch.cat(list(backbone.in_blocks([crops])))

        sound = torch.rand(16_000 * (1 if setup.quick else SECONDS)) * 2 - 1
        work = operations(vggish, torch.zeros(1, 96, 64))
        tell(_row(setup, "VGGish", rows_of_sound, sound, 16_000, work))
        crops = torch.randint(0, 256, (8 if setup.quick else CROPS, 112, 112, 3), dtype=torch.uint8)
        work = operations(iresnet, torch.zeros(1, 3, 112, 112))
        tell(_row(setup, "IResNet-50", rows_of_crops, crops, 4, work))


def _row(
    setup: Setup, name: str, load: Callable[[torch.device, torch.dtype], Rows], whole: Tensor, few: int, work: float
) -> dict[str, Any]:
    """Compare the rows of a small part with the CPU's in float32, then time all."""
    device = torch.device(setup.device)
    rows_of = load(device, DTYPES[setup.precision])
    expected, found = load(CPU, torch.float32)(whole[:few]), rows_of(whole[:few]).cpu()
    error = float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())
    best, count = float("inf"), 0
    for _ in range(2 if setup.quick else 4):
        started = time.perf_counter()
        count = len(rows_of(whole))
        synchronise(device)
        best = min(best, time.perf_counter() - started)
    used, limit = work * count / best / 1e12, matrix_tflops(device, setup.precision, layer_shape(setup))
    return {
        "name": f"{name}, {setup.precision}",
        "relative_error_max": error,
        "tolerance": TOLERANCE[setup.precision],
        "rows_per_second": count / best,
        "tflops": used,
        "share_of_matrix_rate": used / limit,
        "gpu_peak_gib": peak_gib(device),
        "passed": error <= TOLERANCE[setup.precision],
    }


def operations(network: nn.Module, example: Tensor) -> float:
    """Count the floating-point operations of an example's products: two per multiplication."""
    with FlopCounterMode(display=False) as counter:
        network(example)
    return float(counter.get_total_flops())
