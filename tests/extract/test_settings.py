"""Settings of an extraction: what is refused, and what "auto" becomes."""

import pytest
import torch

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


def test_auto_takes_cuda_and_bf16_where_they_are(cuda):
    settings = ExtractSettings()
    assert (settings.resolved_device().type, settings.resolved_precision(ALL)[0]) == ("cpu", "fp32")
    cuda(True)
    assert (settings.resolved_device().type, settings.resolved_precision(ALL)[0]) == ("cuda", "bf16")
    assert settings.resolved_precision(("fp32",))[0] == "fp32"
    assert ExtractSettings(device="cpu").resolved_precision(ALL)[0] == "fp32"


def test_cuda_that_is_not_there_and_a_precision_that_a_backbone_lacks_are_refused(cuda):
    with pytest.raises(ExtractSettingsError, match="no CUDA device"):
        ExtractSettings(device="cuda").resolved_device()
    with pytest.raises(ExtractSettingsError, match="computes in fp32 only"):
        ExtractSettings(precision="bf16").resolved_precision(("fp32",))


def test_batches_are_large_on_a_gpu_and_one_per_core_for_a_small_model(cuda):
    assert ExtractSettings().batching(small=False) == (48.0, 1)
    assert ExtractSettings(batch_seconds=5).batching(small=False) == (5, 1)
    assert ExtractSettings().batching(small=True)[1] >= 1
    cuda(True)
    assert ExtractSettings().batching(small=True) == (480.0, 1)
