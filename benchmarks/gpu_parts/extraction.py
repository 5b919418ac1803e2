"""Extraction at the paper's shape: each stage by itself, then files to cache, 33 hours of mp3 if time allows."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

import emi
from benchmarks._machine import peak_mb
from benchmarks._peers import flops_per_second
from benchmarks.gpu_parts.harness import Setup, Tell
from benchmarks.gpu_parts.machine import layer_shape, matrix_tflops, peak_gib, synchronise
from benchmarks.gpu_parts.material import audeering, mp3s, repeated, speech_lengths, voices
from cache import CacheWriter, Clip, Header
from cache.system.machine import available_cores
from extract.audio.media import Waveform, decode
from extract.audio.modality import AUDIO
from extract.backbones import identify
from extract.batch_computer import BatchComputer
from extract.clips import load_extractor
from extract.modality.decoding import Decoders
from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE, ExtractSettings
from extract.sources import Source, find_media
from extract.stats import PipelineStats

HOURS = 33.0
"""Of Hume-Vidmimic2."""
SHARE = 0.7
"""Of the part's time that the long run may take by what the short one says."""
VOICES = 64
DIM = 1024


def measure(setup: Setup, tell: Tell) -> None:
    """Tell rows of the stages, then of the whole."""
    seconds = speech_lengths(4 if setup.quick else VOICES)
    if setup.quick:
        seconds = seconds / 10
    clips = mp3s(voices(setup.folder / "wav", seconds.tolist()), setup.folder / "mp3")
    lasting = float(np.minimum(seconds, 12).sum())
    some = find_media(repeated(clips, setup.folder / "some", lasting, lasting / 3600 * (1 if setup.quick else 16)))
    for where in ("threads",) if setup.quick else ("threads", "processes"):
        tell(decoding(some, where, available_cores()))
    waveforms = [decode(source.path) for source in some[: len(seconds)]] * (1 if setup.quick else 8)
    tell(writing(setup, waveforms))
    checkpoint = audeering(setup)
    tell(computing(setup, checkpoint, some, waveforms))
    hours = (0.0, lasting / 3600) if setup.quick else (1.0, None)
    short = whole(setup, checkpoint, clips, lasting, hours[0])
    tell(short)
    if hours[1] is None:
        fits = SHARE * setup.seconds_left * short["x_real_time"] / 3600
        tell(whole(setup, checkpoint, clips, lasting, min(HOURS, fits)) | {"wanted_hours": HOURS})


def decoding(sources: Sequence[Source], where: str, workers: int) -> dict[str, Any]:
    """mp3 of 44.1 kHz in stereo to 16 kHz mono, and nothing else."""
    with Decoders(AUDIO, workers, 12.0, in_processes=where == "processes") as decoders:
        while not decoders.started():  # each thread starts its own
            _decode_all(decoders, sources[: 4 * workers])
        started = time.perf_counter()
        seconds = _decode_all(decoders, sources)
        elapsed = time.perf_counter() - started
    return {"name": f"decoding only, {where}", "workers": workers, "x_real_time": seconds / elapsed}


def _decode_all(decoders: Decoders, sources: Sequence[Source]) -> float:
    results = [future.result() for future in [decoders.submit(source) for source in sources]]
    return sum(len(result.samples) for result in results if isinstance(result, Waveform)) / SAMPLE_RATE


def writing(setup: Setup, waveforms: Sequence[Waveform]) -> dict[str, Any]:
    """Features of the paper's size into Zarr, flushed to the disk."""
    frames = [np.ones((max(1, len(w.samples) // 320), DIM), np.float16) for w in waveforms]
    started = time.perf_counter()
    with CacheWriter(setup.folder / "written.zarr", Header(fingerprint={"dtype": "float16"}, dim=DIM)) as writer:
        for i, clip in enumerate(frames):
            writer.add(Clip(str(i), clip, None, None, 1.0))
    elapsed = time.perf_counter() - started
    seconds = sum(len(w.samples) for w in waveforms) / SAMPLE_RATE
    size = sum(clip.nbytes for clip in frames)
    return {"name": "writing only", "x_real_time": seconds / elapsed, "gb_per_s": size / elapsed / 1e9}


def computing(
    setup: Setup, checkpoint: Path, sources: Sequence[Source], waveforms: Sequence[Waveform]
) -> dict[str, Any]:
    """Decoded clips to frames in memory, in the batches and streams of an extraction."""
    device = torch.device(setup.device)
    settings = ExtractSettings(backbone=str(checkpoint), device=setup.device, precision=setup.precision)
    extractor = load_extractor(identify(str(checkpoint)), settings, setup.precision)
    computer = BatchComputer(
        extractor.backbone, AUDIO, device, torch.float16, PipelineStats(), parallel := extractor.parallel_batches
    )
    batches = plan_batches([len(w.samples) for w in waveforms], extractor.batch_seconds * SAMPLE_RATE)
    clips = [[(sources[0], waveforms[i]) for i in batch] for batch in batches]
    with ThreadPoolExecutor(parallel) as pool:

        def work() -> None:
            list(pool.map(computer, clips))
            synchronise(device)

        work()
        elapsed = fastest(work, 1 if setup.quick else 3)
    seconds = sum(len(w.samples) for w in waveforms) / SAMPLE_RATE
    used = flops_per_second(str(checkpoint)) * seconds / elapsed / 1e12
    limit = matrix_tflops(device, setup.precision, layer_shape(setup))
    return {
        "name": f"computing only, {setup.precision}",
        "batch_seconds": extractor.batch_seconds,
        "x_real_time": seconds / elapsed,
        "tflops": used,
        "matrix_tflops": limit,
        "share_of_matrix_rate": used / limit,
        "gpu_peak_gib": peak_gib(device),
    }


def fastest(work: Callable[[], None], times: int) -> float:
    """Seconds of the fastest of some runs."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def whole(setup: Setup, checkpoint: Path, clips: Path, lasting: float, hours: float) -> dict[str, Any]:
    """`emi.extract` from mp3 to Zarr; Python and its libraries have been started, and the backbone is loaded within."""
    name = f"{hours:.3g} hours"
    media = repeated(clips, setup.folder / name, lasting, hours)
    started = time.perf_counter()
    done = emi.extract(
        media,
        setup.folder / f"{name}.zarr",
        backbone=str(checkpoint),
        device=setup.device,
        precision=setup.precision,
        processes=1,
    )
    elapsed = time.perf_counter() - started
    return {
        "name": f"files to cache, {name}",
        "clips": done.written,
        "hours": done.seconds / 3600,
        "seconds": elapsed,
        "x_real_time": done.seconds / elapsed,
        "waited_for": done.stats.waiting(),
        "halved_to": done.stats.halved_to,
        "peak_mb": peak_mb(),
        "gpu_peak_gib": peak_gib(torch.device(setup.device)),
        "passed": not done.failures and done.written == sum(1 for _ in media.rglob("*.mp3")),
    }
