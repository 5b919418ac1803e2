"""What extraction does on a GPU: as far as a CPU can show it, and on a GPU where there is one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import extract.settings
from extract.audio.modality import AUDIO
from extract.backbones import family_of, identify
from extract.backbones.speech.encoder import settle_kernels
from extract.batch_computer import BatchComputer
from extract.settings import ExtractSettings
from extract.stats import PipelineStats

FAMILIES = [(kind, norm) for kind in ("wav2vec2", "hubert", "wavlm") for norm in ("group", "layer")]


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bfloat16_on_a_gpu_with_units_for_it_and_not_where_torch_emulates_it(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or units)
    assert ExtractSettings().resolved_precision(("fp32", "bf16", "fp16"))[0] == precision


def test_the_gpus_of_a_cluster_are_assumed_to_support_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(extract.settings, "bfloat16_unit", lambda: None)
    settings = ExtractSettings(engine="ray", device="cuda")
    assert settings.resolved_precision(("fp32", "bf16"))[0] == "bf16"


def test_float32_on_a_gpu_rounds_nothing_and_attention_needs_no_plan_per_length(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        settle_kernels(torch.device("cpu"), "bf16")
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
        settle_kernels(torch.device("cuda"), "fp32")
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def test_a_cuda_stream_waits_for_the_stream_that_laid_out_the_weights(monkeypatch):
    class Stream:
        def __init__(self, _):
            self.waited_for = []

        def wait_stream(self, other):
            self.waited_for.append(other)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: "default")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    computer = BatchComputer(SimpleNamespace(), AUDIO, torch.device("cuda"), torch.float16, PipelineStats(), 2)
    first = computer._stream()
    assert first.waited_for == ["default"]
    assert computer._stream() is first
    assert first.waited_for == ["default"]


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "norm"), FAMILIES)
def test_every_family_on_a_gpu_equals_the_library_on_a_cpu(gpu, tiny, media, tmp_path, kind, norm):
    model = tiny.model(kind, **(tiny.layer_norm if norm == "layer" else {}))
    model.save_pretrained(tmp_path)
    tiny.save_preprocessor(tmp_path)
    waveforms = [media.speech(n / 16_000, seed)[:n] for seed, n in enumerate((399, 1024, 5000, 16_000, 47_999))]
    wanted = torch.cat([tiny.alone(model, w) for w in waveforms])
    identity = identify(str(tmp_path))
    for precision, least in (("fp32", 0.0), ("bf16", 0.998), ("fp16", 0.9999)):
        backbone = family_of(str(tmp_path)).load(identity, gpu, precision)
        with torch.inference_mode():
            frames = backbone([torch.from_numpy(w).to(gpu) for w in waveforms]).frames.cpu()
        if precision == "fp32":
            torch.testing.assert_close(frames, wanted, rtol=0, atol=2e-4)
        assert torch.nn.functional.cosine_similarity(frames, wanted).min() > least


@pytest.mark.gpu
def test_the_same_extraction_on_a_gpu_gives_the_same_bytes(gpu, clips, read_cache, tiny, tmp_path):
    import emi

    tiny.save_audeering(tmp_path / "checkpoint")
    for name in ("one", "two"):
        emi.extract(clips, tmp_path / f"{name}.zarr", backbone=str(tmp_path / "checkpoint"), device="cuda")
    one, two = (read_cache(tmp_path / f"{name}.zarr") for name in ("one", "two"))
    assert one == two
    assert all(np.frombuffer(frames, np.float16).any() for frames, *_ in one.values())
