"""Extraction speed beside its peers, in one run on the same clips:

    python benchmarks/extract.py [--quick] [--device cuda] [--clips FOLDER] [--json FILE]

The backbone has the paper's shape (audEERING's wav2vec 2.0 large, 12 layers) with random weights, which cost the same
time as trained ones. Every row runs in a process of its own, so that its peak memory is its own. Each has "x real time"
(seconds of audio per second) and its share of the matrix-product rate measured in the same run.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).parents[1])  # this file is named like the package it measures

import emi  # sets in the environment of the rows how OpenMP waits
from cache import CacheWriter, Clip, Header
from extract.backbones import identify
from extract.backbones.transformers_family import TRANSFORMERS
from extract.media import decode
from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE
from extract.sources import find_media

ROWS = (
    "gemm fp32",
    "gemm bf16",
    "decode only",
    "write only",
    "(a) transformers, one clip, fp32",
    "(b) transformers, padded batch, fp32",
    "(b) transformers, padded batch, bf16 autocast",
    "(c) ONNX Runtime, one clip, fp32",
    "(d) emi, fp32",
    "(e) emi, bf16",
    "silero, decoding included",
)
CUDA_LEFT_OUT = ("(c) ONNX Runtime, one clip, fp32", "silero, decoding included")


def main() -> None:
    """Run every row in a process of its own and print the table."""
    options = parse()
    if options.row:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.checkpoint = options.checkpoint or str(make_checkpoint(Path(folder) / "checkpoint", options.quick))
        options.flops = options.flops or flops_per_second(options.checkpoint)
        clips = options.clips or str(make_clips(Path(folder) / "clips", options.count))
        results = [run_row(row, clips, options) for row in ROWS if options.device == "cpu" or row not in CUDA_LEFT_OUT]
    rates = {row["name"].split()[1]: row["gflops"] for row in results if row["name"].startswith("gemm")}
    for row in results:
        if "x_real_time" in row and row.get("precision"):
            row["percent_of_gemm"] = 100 * row["x_real_time"] * options.flops / 1e9 / rates[row["precision"]]
    print_table(results, options)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2) + "\n")


def parse() -> argparse.Namespace:
    """Command line; `--row` and what follows it are for the script's own child processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small backbone and few clips: does it run at all?")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--clips", help="folder of media [default: generated, lengths as in Hume-Vidmimic2]")
    parser.add_argument("--count", type=int, help="clips used by the slow rows [default: 24; 6 with --quick]")
    parser.add_argument("--json", help="write the rows here")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", help=argparse.SUPPRESS)
    parser.add_argument("--flops", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.count = options.count or (6 if options.quick else 24)
    return options


def run_row(row: str, clips: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row in a child process."""
    command = [sys.executable, __file__, "--row", row, "--clips", clips, "--device", options.device]
    command += ["--checkpoint", options.checkpoint, "--count", str(options.count)]
    print(f"{row} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return {"name": row, "error": f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one row: the median of three passes after a warm-up."""
    row, device = options.row, torch.device(options.device)
    if row.startswith("gemm"):
        return {"name": row, "gflops": gemm_rate(torch.float32 if row.endswith("fp32") else torch.bfloat16, device)}
    sources = find_media(options.clips)
    light = row in ("decode only", "write only") or row.startswith("silero")
    sources = sources if light else sources[:: max(1, len(sources) // options.count)][: options.count]
    waveforms = [decode(source.path).samples for source in sources]
    seconds = sum(map(len, waveforms)) / SAMPLE_RATE
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work = WORK[row](options, sources, waveforms, device)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"name": row, "clips": len(waveforms), "audio_seconds": seconds}
    result |= {
        "x_real_time": seconds / float(np.median(times[1:])),
        "peak_mb": peak / 1024,
        "above_input_mb": (peak - before) / 1024,
    }
    if "fp32" in row or "bf16" in row:
        result["precision"] = "bf16" if "bf16" in row else "fp32"
    return result


Work = Callable[[], object]


def decode_only(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Threads that decode, as extraction uses them."""
    from concurrent.futures import ThreadPoolExecutor

    pool = ThreadPoolExecutor(os.cpu_count())
    return lambda: list(pool.map(lambda source: len(decode(source.path).samples), sources))


def write_only(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Features of the paper's size into Zarr."""
    header = Header(fingerprint={"dtype": "float16"}, dim=1024)
    frames = [np.random.default_rng(0).normal(size=(max(1, len(w) // 320), 1024)).astype(np.float16) for w in waveforms]

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder, CacheWriter(Path(folder) / "c.zarr", header) as writer:
            for i, clip in enumerate(frames):
                writer.add(Clip(str(i), clip, None, None, 1.0))

    return write


def library(options: argparse.Namespace, device: torch.device) -> Any:
    """The transformers model and its input normalisation, as its users write it."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(options.checkpoint, dtype=torch.float32).eval().to(device)
    return model, Wav2Vec2FeatureExtractor(return_attention_mask=True)


def transformers_single(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """One clip at a time."""
    model, extractor = library(options, device)

    @torch.inference_mode()
    def run() -> None:
        for waveform in waveforms:
            values = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
            model(values.to(device)).last_hidden_state.cpu()

    return run


def transformers_batched(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Padded batches of similar length with an attention mask."""
    model, extractor = library(options, device)
    batches = plan_batches([len(w) for w in waveforms], 480 if device.type == "cuda" else 48)
    autocast = "bf16" in options.row

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            clips = [waveforms[i] for i in batch]
            inputs = extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                model(**inputs).last_hidden_state.cpu()

    return run


def onnx_single(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """ONNX Runtime, one clip at a time: the route the checkpoint's authors recommend."""
    import warnings

    import onnxruntime

    model, extractor = library(options, device)
    model.config.return_dict = False
    path = Path(options.checkpoint) / "model.onnx"
    if not path.exists():
        warnings.simplefilter("ignore")
        model.set_attn_implementation("eager")
        fold_weight_norm(model)
        torch.onnx.export(
            model,
            (torch.randn(1, 16000),),
            str(path),
            input_names=["signal"],
            output_names=["frames"],
            dynamic_axes={"signal": {0: "batch", 1: "time"}, "frames": {0: "batch", 1: "time"}},
            opset_version=17,
            dynamo=False,
        )
    del model
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run() -> None:
        for waveform in waveforms:
            values = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values
            session.run(["frames"], {"signal": values})

    return run


def ours(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """The product's backbone on its own batches."""
    backbone = TRANSFORMERS.load(identify(options.checkpoint), device, "bf16" if "bf16" in options.row else "fp32")
    batches = plan_batches([len(w) for w in waveforms], 480 if device.type == "cuda" else 48)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            backbone([torch.from_numpy(waveforms[i]).to(device) for i in batch]).frames.half().cpu()

    return run


def silero(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Media to cache with the small backbone."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            emi.extract(options.clips, Path(folder) / "c.zarr", backbone="silero")

    return run


WORK: dict[str, Callable[..., Work]] = {
    "decode only": decode_only,
    "write only": write_only,
    "(a) transformers, one clip, fp32": transformers_single,
    "(b) transformers, padded batch, fp32": transformers_batched,
    "(b) transformers, padded batch, bf16 autocast": transformers_batched,
    "(c) ONNX Runtime, one clip, fp32": onnx_single,
    "(d) emi, fp32": ours,
    "(e) emi, bf16": ours,
    "silero, decoding included": silero,
}


def gemm_rate(dtype: torch.dtype, device: torch.device) -> float:
    """GFLOP/s of the backbone's own largest product, (frames, 1024) @ (1024, 4096), best of ten."""
    rows = 8192 if device.type == "cuda" else 2400
    a, b = (torch.randn(*shape, device=device).to(dtype) for shape in ((rows, 1024), (4096, 1024)))
    best = float("inf")
    for _ in range(10):
        started = time.perf_counter()
        torch.nn.functional.linear(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * rows * 1024 * 4096 / best / 1e9


def flops_per_second(checkpoint: str) -> float:
    """Floating-point operations of the model per second of audio, counted on a 7 s clip."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    fold_weight_norm(model)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 7 * SAMPLE_RATE))
    return counter.get_total_flops() / 7


def fold_weight_norm(model: Any) -> None:
    """Give the positional convolution a plain weight, which exporters and counters can follow."""
    torch.nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")


def make_checkpoint(folder: Path, quick: bool) -> Path:
    """Random weights in the shape of the paper's backbone; two small layers with --quick."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    shape = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 12}
    if quick:
        shape = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = Wav2Vec2Config(**shape, feat_extract_norm="layer", conv_bias=True, do_stable_layer_norm=True)
    torch.manual_seed(0)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


def make_clips(folder: Path, count: int) -> Path:
    """Noise with the lengths of Hume-Vidmimic2: mean 6.9 s, 95 % under 11.5 s."""
    import wave

    rng = np.random.default_rng(0)
    folder.mkdir()
    for i, seconds in enumerate(np.clip(rng.normal(6.9, 2.6, count), 0.5, 12)):
        samples = (3000 * rng.normal(size=int(seconds * SAMPLE_RATE))).astype("<i2")
        with wave.open(str(folder / f"{i:05d}.wav"), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(samples.tobytes())
    return folder


def print_table(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Markdown, ready for docs/performance.md."""
    gpu = f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""
    print(f"{cpu_name()}, {os.cpu_count()} cores{gpu}; torch {torch.__version__}, {platform.python_version()}")
    print(f"{options.flops / 1e9:.1f} GFLOP per second of audio, counted\n")
    print("| row | x real time | % of GEMM | GFLOP/s | peak MB |\n|---|---|---|---|---|")
    for row in results:
        if "error" in row:
            print(f"| {row['name']} | failed: {row['error']} | | | |")
            continue
        percent = f"{row['percent_of_gemm']:.0f}" if "percent_of_gemm" in row else ""
        speed = f"{row['x_real_time']:.1f}" if "x_real_time" in row else ""
        rate = f"{row['gflops']:.0f}" if "gflops" in row else ""
        peak = f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""
        print(f"| {row['name']} | {speed} | {percent} | {rate} | {peak} |")


def cpu_name() -> str:
    """Model name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
