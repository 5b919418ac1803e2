"""What a header takes as a clip: real numbers that are finite in the dtype in which they are stored."""

import numpy as np
import pytest

from cache import CacheFormatError, Clip

VAD = np.full((2, 3), 0.5, np.float32)
FRAMES = np.full((2, 4), 0.25, np.float32)
OVERFLOW = np.finfo(np.float16).max.astype(np.float32) + 16
"""The smallest float32 that NumPy rounds to a float16 of infinity (65504 has an ulp of 32)."""


def clip(frames=FRAMES, vad=VAD, pooled=VAD[0]) -> Clip:
    return Clip("loud", frames, vad, pooled, 0.04)


def test_vad_that_overflows_where_heads_get_it_rounded_is_refused_by_name(make_header):
    with np.errstate(over="ignore"):
        assert np.isinf(np.float16(OVERFLOW))
        assert np.isfinite(np.float16(np.nextafter(OVERFLOW, np.float32(0))))
    with pytest.raises(CacheFormatError, match=r"clip 'loud': its vad overflows float16, .*--dtype float32"):
        make_header().stored(clip(vad=np.full((2, 3), OVERFLOW)))
    make_header().stored(clip(vad=np.full((2, 3), np.nextafter(OVERFLOW, np.float32(0)))))
    stored = make_header(dtype="float32").stored(clip(vad=np.full((2, 3), OVERFLOW)))
    assert (stored.joined()[:, 4:] == OVERFLOW).all()


@pytest.mark.parametrize("part", ["vad", "pooled"])
def test_vad_that_overflows_float32_is_refused_in_any_cache(make_header, part):
    shape = (2, 3) if part == "vad" else 3
    with pytest.raises(CacheFormatError, match="clip 'loud': its vad or vad_pooled is not finite"):
        make_header(dtype="float32").stored(clip(**{part: np.full(shape, 1e300)}))


def test_frames_that_overflow_float32_are_told_so(make_header):
    with pytest.raises(CacheFormatError, match=r"clip 'loud': its features overflow float32$"):
        make_header(dtype="float32").stored(clip(frames=np.full((2, 4), 1e300)))


@pytest.mark.parametrize("dtype", ["complex64", "object", "U4", "S4", "V2", "M8[s]"])
@pytest.mark.parametrize("part", ["frames", "vad", "pooled"])
def test_what_is_no_real_number_is_refused_by_name(make_header, part, dtype):
    array = np.zeros({"frames": (2, 4), "vad": (2, 3), "pooled": 3}[part], dtype)
    with pytest.raises(CacheFormatError, match=rf"clip 'loud': its (vad_)?{part} holds .*expected real numbers"):
        make_header().stored(clip(**{part: array}))
