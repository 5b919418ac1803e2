"""What the machine is, and what it reaches: products of matrices in each precision, attention at new lengths."""

import importlib.util
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import cpu_name, memory_mb
from benchmarks.gpu_parts.harness import Setup, Tell

NEEDED = (
    "accelerate av google_crc32c h5py optuna rich safetensors scipy silero_vad sklearn threadpoolctl tomli_w "
    "torchaudio transformers typer zarr"
).split()
MODES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Shape = tuple[int, int, int]
SQUARE, LAYER = (8192, 8192, 8192), (24_000, 1024, 4096)
"""Rows, inner and columns: what vendors quote, and the largest product of a batch of 480 s in a large wav2vec 2.0."""
LENGTHS = range(101, 125)
"""Of clips in frames, none of which attention has seen before."""


def measure(setup: Setup, tell: Tell) -> None:
    """Tell the machine, and its rates."""
    tell(describe(setup.device))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    tell({"name": "packages", "missing": missing, "passed": not missing})
    device = torch.device(setup.device)
    for mode in ("fp32", "bf16") if setup.device == "cpu" else MODES:
        for name, shape in (("square", quick(SQUARE) if setup.quick else SQUARE), ("layer", layer_shape(setup))):
            rate = matrix_tflops(device, mode, shape)
            tell({"name": f"matrix product, {mode}, {name}", "shape": shape, "tflops": rate})
    if device.type == "cuda":
        for cudnn in (True, False):
            name = "torch's choice" if cudnn else "without cuDNN's, as emi chooses"
            tell({"name": f"attention at new lengths, {name}", "ms_per_call": attention_ms(device, cudnn=cudnn)})


def describe(device: str) -> dict[str, Any]:
    """Names, versions, cores and memory."""
    row: dict[str, Any] = {
        "name": "machine",
        "device": device,
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_mb("/proc/meminfo", "MemTotal") / 1024, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    if device != "cuda":
        return row
    properties = torch.cuda.get_device_properties(0)
    return row | {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


def quick(shape: Shape) -> Shape:
    """A product that takes no time."""
    rows, inner, columns = shape
    return rows // 64, inner // 64, columns // 64


def layer_shape(setup: Setup) -> Shape:
    """Of the product that what is measured is compared with."""
    return quick(LAYER) if setup.quick else LAYER


def matrix_tflops(device: torch.device, mode: str, shape: Shape) -> float:
    """10^12 operations a second of a product, the best of five rounds of calls that wait for nothing in between."""
    rows, inner, columns = shape
    a, b = (torch.randn(n, inner, device=device).to(MODES[mode]) for n in (rows, columns))
    calls = 10 if device.type == "cuda" else 1
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if mode == "tf32" else "highest")
    best = float("inf")
    try:
        with torch.inference_mode():
            for _ in range(6):
                started = time.perf_counter()
                for _ in range(calls):
                    torch.nn.functional.linear(a, b)
                synchronise(device)
                best = min(best, (time.perf_counter() - started) / calls)
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * rows * inner * columns / best / 1e12


def attention_ms(device: torch.device, *, cudnn: bool) -> float:
    """Mean time of the first call at a length, 16 heads of 64 numbers in bfloat16."""
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    with torch.inference_mode():
        for number, length in enumerate((100, *LENGTHS)):
            q = torch.randn(3, 1, 16, length, 64, device=device).bfloat16()
            synchronise(device)
            if number == 1:
                started = time.perf_counter()
            torch.nn.functional.scaled_dot_product_attention(*q)
            synchronise(device)
    return 1000 * (time.perf_counter() - started) / len(LENGTHS)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: torch.device) -> float | None:
    """Most memory of a GPU that torch has held since it was last asked to forget."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def _driver() -> str | None:
    """The driver's version, from the kernel or from NVIDIA's tool."""
    try:
        return Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        pass
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
