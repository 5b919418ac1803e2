"""Settings of an extraction: what is refused, and what "auto" becomes."""

from pathlib import Path

import pytest
import torch

import extract.settings
from cache.system.machine import available_cores, bfloat16_unit
from extract.errors import ExtractSettingsError
from extract.settings import ExtractSettings

ALL = ("fp32", "bf16", "fp16")


@pytest.fixture
def cuda(monkeypatch):
    """Say whether there is a CUDA device."""

    def there(answer):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: answer)

    there(False)
    return there


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"precision": "int8"}, "auto, fp32, bf16, fp16"),
        ({"dtype": "bfloat16"}, "float16, float32"),
        ({"device": "tpu"}, "auto, cpu, cuda"),
        ({"max_seconds": 0}, "above zero"),
        ({"max_seconds": -1.0}, "above zero"),
        ({"max_seconds": float("nan")}, "above zero"),
        ({"max_seconds": float("inf")}, "above zero"),
        ({"batch_seconds": 0.0}, "above zero"),
        *(({"shard": shard}, "for example 2/8") for shard in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3", "1/3/5", "")),
    ],
)
def test_an_option_out_of_range_says_what_is_allowed(settings, named):
    with pytest.raises(ExtractSettingsError) as caught:
        ExtractSettings(**settings)
    assert named in str(caught.value)


def test_a_shard_counts_from_one():
    assert ExtractSettings().shard_numbers() == (0, 1)
    assert [ExtractSettings(shard=f"{i}/3").shard_numbers() for i in (1, 2, 3)] == [(0, 3), (1, 3), (2, 3)]


def test_auto_takes_bf16_where_the_device_has_units_for_it(cuda, monkeypatch):
    settings = ExtractSettings()
    for unit, precision in ((None, "fp32"), ("amx_bf16", "bf16")):
        monkeypatch.setattr(extract.settings, "bfloat16_unit", lambda unit=unit: unit)
        assert settings.resolved_precision(ALL)[0] == precision
        assert str(unit or "no bfloat16 unit") in settings.resolved_precision(ALL)[1]
    cuda(True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert (settings.resolved_device().type, settings.resolved_precision(ALL)[0]) == ("cuda", "bf16")
    assert settings.resolved_precision(("fp32",))[0] == "fp32"


def test_auto_keeps_the_precision_of_the_cache():
    for precision in ALL:
        assert ExtractSettings().resolved_precision(ALL, precision) == (precision, "as in the cache")
    assert ExtractSettings().resolved_precision(("fp32",), "bf16")[0] == "fp32"  # and the cache refuses
    assert ExtractSettings(precision="fp32").resolved_precision(ALL, "bf16")[0] == "fp32"


@pytest.mark.parametrize(
    ("flags", "unit"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_bf16", "amx_bf16"),
        ("flags\t\t: fpu avx512f avx512_bf16", "avx512_bf16"),
        ("flags\t\t: fpu avx512f", None),
    ],
)
def test_the_bfloat16_unit_is_read_from_the_processors_flags(monkeypatch, flags, unit):
    monkeypatch.setattr(Path, "read_text", lambda _: f"processor\t: 0\n{flags}\n")
    assert bfloat16_unit.__wrapped__() == unit


def test_unavailable_cuda_and_an_unsupported_precision_are_refused(cuda):
    with pytest.raises(ExtractSettingsError, match="no CUDA device"):
        ExtractSettings(device="cuda").resolved_device()
    with pytest.raises(ExtractSettingsError, match="computes in fp32 only"):
        ExtractSettings(precision="bf16").resolved_precision(("fp32",))


def test_batches_are_one_per_core_on_a_cpu_and_fill_half_of_a_gpus_free_memory(cuda, monkeypatch):
    assert ExtractSettings().batching(small=False) == (16.0, available_cores())
    assert ExtractSettings(batch_seconds=5).batching(small=False)[0] == 5
    assert ExtractSettings().batching(small=True)[0] == 240.0
    cuda(True)
    for gib, seconds in ((1, 15.0), (8, 60.0), (24, 120.0), (141, 480.0)):
        for free in (1, gib):  # what is free at the moment does not change the batches
            monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free, gib=gib: (free << 30, gib << 30))
            assert ExtractSettings().batching(small=False) == (seconds, 2)
    assert ExtractSettings(batch_seconds=5).batching(small=False) == (5, 2)


def test_one_process_per_gpu_by_default(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert ExtractSettings().resolved_processes() == 4
    assert ExtractSettings(processes=3).resolved_processes() == 3
    assert ExtractSettings(device="cpu").resolved_processes() == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert ExtractSettings().resolved_processes() == 1
