"""What the field uses today to turn clips into wav2vec 2.0 features, as its users write it."""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from extract.plan import plan_batches
from extract.settings import SAMPLE_RATE

Work = Callable[[int], object]
"""Handles the first so many clips."""


def library(options: argparse.Namespace, device: torch.device) -> Any:
    """The transformers model and its input normalisation, as its users write it."""
    from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model

    model = Wav2Vec2Model.from_pretrained(options.checkpoint, dtype=torch.float32).eval().to(device)
    return model, Wav2Vec2FeatureExtractor(return_attention_mask=True)


def transformers_single(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """One clip at a time."""
    model, extractor = library(options, device)

    @torch.inference_mode()
    def run(count: int) -> None:
        for waveform in waveforms[:count]:
            values = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
            model(values.to(device)).last_hidden_state.cpu()

    return run


def transformers_batched(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """Padded batches of similar length with an attention mask."""
    model, extractor = library(options, device)
    autocast = "bf16" in options.row

    @torch.inference_mode()
    def run(count: int) -> None:
        for batch in plan_batches(
            [len(w) for w in waveforms[:count]], (480 if device.type == "cuda" else 48) * SAMPLE_RATE
        ):
            clips = [waveforms[i] for i in batch]
            inputs = extractor(clips, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                model(**inputs).last_hidden_state.cpu()

    return run


def onnx_single(options: argparse.Namespace, sources: Any, waveforms: Any, device: torch.device) -> Work:
    """ONNX Runtime, one clip at a time: the route the checkpoint's authors recommend."""
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

    def run(count: int) -> None:
        for waveform in waveforms[:count]:
            values = extractor(waveform, sampling_rate=SAMPLE_RATE, return_tensors="np").input_values
            session.run(["frames"], {"signal": values})

    return run


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
