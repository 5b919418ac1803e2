"""Extraction speed beside its peers, in one run on the same clips:

    python benchmarks/extract.py [--quick] [--device cuda] [--clips FOLDER] [--json FILE]

The backbone has the paper's shape (audEERING's wav2vec 2.0 large, 12 layers) with random weights, which cost the same
time as trained ones. Every row runs in a process of its own, so that its peak memory is its own. Each has "x real time"
(seconds of audio per second) and its share of the matrix-product rate measured in the same run.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like the package it measures

import emi  # sets in the environment of the rows how OpenMP waits
from benchmarks._machine import cpu_name, peak_mb
from benchmarks._material import make_checkpoint, make_clips, repeat_clips
from benchmarks._peers import Work, flops_per_second, onnx_single, transformers_batched, transformers_single
from cache import CacheWriter, Clip, Header
from cache.system.machine import available_cores, bfloat16_unit
from extract.audio.media import decode
from extract.audio.modality import AUDIO
from extract.backbones import identify
from extract.backbones.packed_weights import PackedLinear
from extract.backbones.speech.family import TRANSFORMERS
from extract.modality.decoding import Decoders
from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE, ExtractSettings
from extract.sources import find_media

GEMM = ("gemm fp32", "gemm bf16", "gemm fp32, packed weight", "gemm bf16, packed weight")
BACKBONE = (
    "(a) transformers, one clip, fp32",
    "(b) transformers, padded batch, fp32",
    "(b) transformers, padded batch, bf16 autocast",
    "(c) ONNX Runtime, one clip, fp32",
    "(d) emi, fp32",
    "(e) emi, bf16",
)
PIPELINE = ("decode only, threads", "decode only, processes", "write only", "silero, media to cache")
WHOLE = "emi, media to cache"
PROFILED = "profile of (e), bf16"
MEMORY = ("silero, 1,000 clips of 0.5 s", "silero, 10,000 clips of 0.5 s")
CUDA_LEFT_OUT = ("(c) ONNX Runtime, one clip, fp32", "gemm fp32, packed weight", "gemm bf16, packed weight")
PROFILE = {
    "matrix products": ("mkldnn::_linear_pointwise", "aten::addmm", "aten::mm"),
    "attention": ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention"),
    "GELU": ("aten::gelu",),
    "LayerNorm": ("aten::native_layer_norm",),
    "positional convolution": ("mkldnn::_convolution_pointwise", "aten::cudnn_convolution"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::fill_"),
    "residual sums": ("aten::add", "aten::add_"),
}
"""What the time of (e) goes to, by torch's operators; the rest is "other"."""
LENGTHS = {"EMI": (6.9, 2.6), "RAVDESS": (3.7, 0.34)}
"""Mean and spread of the clips' seconds: Hume-Vidmimic2 (95 % under 11.5 s) and RAVDESS."""
PASSES = 3


def main() -> None:
    """Run every row in a process of its own and print the tables."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        options.checkpoint = options.checkpoint or str(make_checkpoint(Path(folder) / "checkpoint", options.quick))
        options.flops = flops_per_second(options.checkpoint)
        results = [run_row(row, "", options) for row in GEMM if not left_out(row, options)]
        for lengths, (mean, spread) in list(LENGTHS.items())[: 1 if options.quick else None]:
            clips = str(make_clips(Path(folder) / lengths, options.count, mean, spread))
            for row in BACKBONE:
                if not left_out(row, options):
                    results.append(run_row(row, clips, options) | {"lengths": lengths})
        clips = options.clips or str(make_clips(Path(folder) / "many", 20 if options.quick else 600, *LENGTHS["EMI"]))
        results += [run_row(row, clips, options) for row in PIPELINE]
        if options.hours:
            repeated = repeat_clips(Path(clips), Path(folder) / "hours", options.hours)
            results.append(run_row(WHOLE, str(repeated), options))
        if not left_out(PROFILED, options):
            results.append(run_row(PROFILED, str(Path(folder) / "EMI"), options))
        if options.device == "cpu":
            for row in MEMORY:
                count = int(row.split()[1].replace(",", "")) // (100 if options.quick else 1)
                results.append(run_row(row, str(make_clips(Path(folder) / str(count), count, 0.5, 0)), options))
    rates = {row["name"]: row["gflops"] for row in results if "gflops" in row}
    for row in results:
        if "precision" in row:
            row["gflops_used"] = row["x_real_time"] * options.flops / 1e9
            for name, rate in rates.items():
                if row["precision"] in name:
                    row["percent_of_" + name.replace(",", "").replace(" ", "_")] = 100 * row["gflops_used"] / rate
    print_tables(results, options)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def left_out(row: str, options: argparse.Namespace) -> bool:
    """Rows that the device has nothing for; without a unit for it, bfloat16 takes a CPU minutes per clip."""
    if options.device == "cuda":
        return row in CUDA_LEFT_OUT
    return "bf16" in row and bfloat16_unit() is None


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small backbone and few clips: does it run at all?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clips", help="folder of media for decoding and silero [default: 600 generated WAV files]")
    parser.add_argument("--hours", type=float, help="also run the paper's backbone, media to cache, on so many hours")
    parser.add_argument("--count", type=int, help="clips for the backbone's rows [default: 24; 4 with --quick]")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--checkpoint", help="folder of a wav2vec 2.0 checkpoint [default: made at random]")
    options = parser.parse_args()
    options.count = options.count or (4 if options.quick else 24)
    return options


def run_row(row: str, clips: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row in a process of its own, forked from a server that has imported the libraries and done nothing else."""
    print(f"{row} ...", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["emi", "torchaudio", "transformers.models.wav2vec2.modeling_wav2vec2"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, row, clips, options).result()
        except Exception as error:  # a row that fails, or is killed for its memory, leaves the others
            return {"name": row, "error": f"{type(error).__name__}: {error}".splitlines()[0]}


def measure(row: str, clips: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row: the median of the passes after a warm-up."""
    device = torch.device(options.device)
    if row.startswith("gemm"):
        dtype = torch.float32 if "fp32" in row else torch.bfloat16
        return {"name": row, "gflops": gemm_rate(dtype, device, packed="packed" in row)}
    sources = find_media(clips)
    if row == PROFILED:
        return {"name": row, "percent": profile(options, [decode(source.path).samples for source in sources], device)}
    if row == WHOLE:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            done = emi.extract(clips, Path(folder) / "c.zarr", backbone=options.checkpoint, device=options.device)
            elapsed = time.perf_counter() - started
        figures = {"clips": done.written, "audio_seconds": done.seconds, "x_real_time": done.seconds / elapsed}
        return {"name": row, **figures, "waited_for": done.stats.waiting(), "peak_mb": peak_mb()}
    if row in MEMORY:
        emi.extract(clips, f"{clips}.zarr", backbone="silero")
        return {"name": row, "clips": len(sources), "peak_mb": peak_mb()}
    waveforms = [decode(source.path).samples for source in sources]
    seconds = sum(map(len, waveforms)) / SAMPLE_RATE
    before = peak_mb()
    work = WORK[row](argparse.Namespace(**vars(options) | {"row": row, "clips": clips}), sources, waveforms, device)
    work(2)
    times = []
    for _ in range(1 if options.quick else PASSES):
        started = time.perf_counter()
        work(len(waveforms))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    result = {
        "name": row,
        "clips": len(waveforms),
        "audio_seconds": seconds,
        "x_real_time": seconds / float(np.median(times)),
        "peak_mb": peak_mb(),
        "above_input_mb": peak_mb() - before,
    }
    if device.type == "cuda":
        result["device_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    if row in BACKBONE:
        result["precision"] = "bf16" if "bf16" in row else "fp32"
    return result


def profile(options: argparse.Namespace, waveforms: Any, device: torch.device) -> dict[str, float]:
    """Percent of the operators' own time, one batch after the other with one thread."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    backbone = TRANSFORMERS.load(identify(options.checkpoint), device, "bf16")
    batch_seconds, _ = ExtractSettings(device=device.type).batching(small=False)
    torch.set_num_threads(1)
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with torch.inference_mode(), torch_profile(activities=activities) as recorded:
        for batch in plan_batches([len(w) for w in waveforms], batch_seconds * SAMPLE_RATE):
            backbone([torch.from_numpy(waveforms[i]).to(device) for i in batch])
    own = {
        event.key: event.self_device_time_total if on_cuda else event.self_cpu_time_total
        for event in recorded.key_averages()
    }
    shares = {name: 100 * sum(own.get(key, 0) for key in keys) / sum(own.values()) for name, keys in PROFILE.items()}
    return shares | {"other": 100 - sum(shares.values())}


def decode_only(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """As many decoders as cores, in threads of this process or in processes of their own."""

    def run(count: int) -> None:
        for future in [decoders.submit(source) for source in sources[:count]]:
            future.result()

    decoders = Decoders(AUDIO, available_cores(), 12.0, in_processes="processes" in options.row)
    while not decoders.started():  # each thread starts its own
        run(4 * available_cores())
    return run


def write_only(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Features of the paper's size into Zarr."""
    header = Header(fingerprint={"dtype": "float16"}, dim=1024)
    frames = [np.random.default_rng(0).normal(size=(max(1, len(w) // 320), 1024)).astype(np.float16) for w in waveforms]

    def write(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder, CacheWriter(Path(folder) / "c.zarr", header) as writer:
            for i, clip in enumerate(frames[:count]):
                writer.add(Clip(str(i), clip, None, None, 1.0))

    return write


def ours(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """The product's backbone on its own batches, as many at once as in an extraction, without decoding and writing."""
    backbone = TRANSFORMERS.load(identify(options.checkpoint), device, "bf16" if "bf16" in options.row else "fp32")
    batch_seconds, parallel = ExtractSettings(device=device.type).batching(small=False)
    if device.type == "cpu":
        torch.set_num_threads(1)
    pool = ThreadPoolExecutor(parallel)

    def run_batch(batch: list[int]) -> None:
        with torch.inference_mode():
            backbone([torch.from_numpy(waveforms[i]).to(device) for i in batch]).frames.half().cpu()

    def run(count: int) -> None:
        list(pool.map(run_batch, plan_batches([len(w) for w in waveforms[:count]], batch_seconds * SAMPLE_RATE)))

    return run


def silero(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Media to cache with the small backbone; nothing is left out but the start of Python."""

    def run(count: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            emi.extract(options.clips, Path(folder) / "c.zarr", backbone="silero")

    return run


WORK: dict[str, Callable[..., Work]] = {
    "decode only, threads": decode_only,
    "decode only, processes": decode_only,
    "write only": write_only,
    "(a) transformers, one clip, fp32": transformers_single,
    "(b) transformers, padded batch, fp32": transformers_batched,
    "(b) transformers, padded batch, bf16 autocast": transformers_batched,
    "(c) ONNX Runtime, one clip, fp32": onnx_single,
    "(d) emi, fp32": ours,
    "(e) emi, bf16": ours,
    "silero, media to cache": silero,
}


def gemm_rate(dtype: torch.dtype, device: torch.device, *, packed: bool) -> float:
    """GFLOP/s of the backbone's own largest product, (frames, 1024) @ (1024, 4096), best of thirty."""
    rows = 8192 if device.type == "cuda" else 2400
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, 1024), (4096, 1024)))
    product = PackedLinear(b, None, dtype) if packed else lambda a: torch.nn.functional.linear(a, b)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(30):
            started = time.perf_counter()
            product(a)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
    return 2 * rows * 1024 * 4096 / best / 1e9


def print_tables(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Markdown, ready for docs/performance.md."""
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    print(f"{cpu_name()}, {os.cpu_count()} cores{gpu}; torch {torch.__version__}, {platform.python_version()}")
    print(f"{options.flops / 1e9:.1f} GFLOP per second of audio, counted\n")
    print("| row | clips | x real time | GFLOP/s | % of GEMM | % of packed GEMM | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for row in results:
        if "percent" in row:
            continue
        if "error" in row:
            print(f"| {row['name']} | failed: {row['error']} | | | | | |")
            continue
        percents = [row.get(f"percent_of_gemm_{row.get('precision')}{end}") for end in ("", "_packed_weight")]
        figures = [row.get("x_real_time"), row.get("gflops", row.get("gflops_used")), *percents, row.get("peak_mb")]
        shown = ["" if figure is None else f"{figure:,.1f}" if figure < 100 else f"{figure:,.0f}" for figure in figures]
        lengths = f", {row['lengths']} lengths" if "lengths" in row else ""
        print(f"| {row['name']} | {row.get('clips', '')}{lengths} | {' | '.join(shown)} |")
    for row in results:
        if "percent" in row:
            print(f"\n{row['name']}: " + ", ".join(f"{name} {value:.0f} %" for name, value in row["percent"].items()))


if __name__ == "__main__":
    main()
