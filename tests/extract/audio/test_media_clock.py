"""A row at 3 s is what is heard at 3 s: late sound and gaps become silence, whatever the container's clock does."""

import numpy as np
import pytest

from extract.audio.media import decode, read
from extract.audio.track import LARGEST_GAP, Clock
from extract.errors import MediaError

CONTAINERS = [
    (".mkv", "libopus", "mpeg4"),
    (".mka", "aac", None),
    (".webm", "libopus", "libvpx"),
    (".mp4", "aac", "mpeg4"),
    (".mov", "aac", "mpeg4"),
    (".m4a", "aac", None),
    (".flv", "libmp3lame", "flv"),
    (".ts", "aac", "mpeg2video"),
    (".mpg", "mp2", "mpeg2video"),
    (".nut", "aac", "mpeg4"),
    (".opus", "libopus", None),
    (".wmv", "libmp3lame", "mpeg4"),
]


def rate_for(suffix):
    return 44_100 if suffix == ".flv" else 48_000


@pytest.mark.parametrize(("suffix", "codec", "picture"), CONTAINERS)
def test_late_sound_is_preceded_by_silence(tmp_path, media, suffix, codec, picture):
    rate = rate_for(suffix)
    sound = media.bursts((0.5, 1.0), 1.5, rate)
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec, shift=2.0, picture=picture, rate=rate)
    waveform = decode(path)
    assert media.burst_times(waveform.samples) == pytest.approx([2.5, 3.0], abs=0.06)
    assert not waveform.samples[: int(1.9 * 16_000)].any()
    assert waveform.seconds == pytest.approx(3.5, abs=0.1)
    assert decode(path, 2.7).seconds == pytest.approx(3.5, abs=0.1)


@pytest.mark.parametrize(("suffix", "codec", "picture"), CONTAINERS)
def test_lost_packets_leave_silence(tmp_path, media, suffix, codec, picture):
    rate = rate_for(suffix)
    sound = media.bursts((0.5, 2.5, 3.0), 3.5, rate)
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec, lost=(1.0, 2.0), picture=picture, rate=rate)
    waveform = decode(path)
    assert media.burst_times(waveform.samples) == pytest.approx([0.5, 2.5, 3.0], abs=0.06)
    assert waveform.seconds == pytest.approx(3.5, abs=0.1)


def test_what_the_gap_holds_of_the_cut_is_silence_up_to_it(tmp_path, media):
    sound = media.bursts((0.5, 4.0), 4.5)
    path = media.write_on_clock(tmp_path / "x.mka", sound, "libopus", lost=(1.0, 3.5))
    waveform = decode(path, 2.0)
    assert len(waveform.samples) == 32_000
    assert not waveform.samples[24_000:].any()
    assert waveform.seconds == pytest.approx(4.5, abs=0.1)


def test_a_gap_in_8_bit_sound_is_silent_too(tmp_path, media):
    sound = media.tones(3.0, 48_000)
    path = media.write_on_clock(tmp_path / "x.mka", sound, "pcm_u8", lost=(1.0, 2.0))
    samples = decode(path).samples
    assert not samples[17_000:31_000].any()
    assert len(samples) == pytest.approx(48_000, abs=1000)


@pytest.mark.parametrize("start", [5.0, 100.0, 80_000.0])
def test_the_clock_of_a_transport_stream_starts_anywhere(tmp_path, media, start):
    sound = media.bursts((0.5,), 1.0)
    path = media.write_on_clock(tmp_path / "x.ts", sound, "aac", shift=start)
    assert media.burst_times(decode(path).samples) == pytest.approx([0.5], abs=0.06)


@pytest.mark.parametrize("suffix", [".mka", ".opus"])
def test_a_clock_that_was_kept_from_a_longer_recording_starts_with_the_sound(tmp_path, media, suffix):
    path = media.write_on_clock(tmp_path / f"x{suffix}", media.bursts((0.5,), 1.0), "libopus", shift=3600.0)
    waveform = decode(path)
    assert media.burst_times(waveform.samples) == pytest.approx([0.5], abs=0.06)
    assert waveform.seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("jump", [1e5, LARGEST_GAP + 10])
def test_a_broken_clock_does_not_fill_the_memory(tmp_path, media, jump):
    sound = media.bursts((0.5, 1.5), 2.0)
    path = media.write_on_clock(tmp_path / "x.mka", sound, "libopus", jump=(1.0, jump))
    recording = read(path, 3600.0)
    assert media.burst_times(recording.samples, recording.rate) == pytest.approx([0.5, 1.5], abs=0.06)


def test_a_clock_that_starts_again_is_followed_from_there(tmp_path, media):
    whole = media.write_on_clock(tmp_path / "a.mka", media.bursts((0.5, 2.0), 2.5), "libopus", lost=(1.0, 1.5))
    (tmp_path / "b.mka").write_bytes(whole.read_bytes() * 2)
    times = media.burst_times(decode(tmp_path / "b.mka").samples)
    assert times == pytest.approx([0.5, 2.0, 3.0, 4.5], abs=0.06)


@pytest.mark.parametrize("jitter", [0.02, 0.09, -0.01])
def test_jitter_below_the_tolerance_changes_nothing(tmp_path, media, jitter):
    sound = media.bursts((0.5, 1.5), 2.0)
    plain = media.write_on_clock(tmp_path / "a.mka", sound, "libopus")
    moved = media.write_on_clock(tmp_path / "b.mka", sound, "libopus", jump=(1.0, jitter))
    np.testing.assert_array_equal(decode(plain).samples, decode(moved).samples)


def test_small_gaps_add_up_to_one_silence():
    clock, end = Clock(0.0), 1.0
    assert clock.silence_before(1.06, end) == 0.0
    assert clock.silence_before(1.26, end + 0.1) == pytest.approx(0.16)
    assert clock.silence_before(1.2, end + 0.3) == 0.0  # what is early is not cut
    assert clock.silence_before(3.3, end + 0.3) == pytest.approx(2.0)
    assert clock.silence_before(0.0, 3.3) == 0.0  # starts again
    assert clock.silence_before(2.0, 3.4) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mka", "aac"), (".webm", "libopus"), (".ogg", "libopus"), (".flac", "flac")]
)
@pytest.mark.parametrize("damage", [bytes, lambda count: np.random.default_rng(0).bytes(count), lambda _: b""])
def test_a_hole_in_the_file_is_no_gap_on_its_clock(tmp_path, media, suffix, codec, damage):
    sound = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 6 * 48_000))
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec)
    content = path.read_bytes()
    begin, end = len(content) // 2, len(content) * 7 // 10
    path.write_bytes(content[:begin] + damage(end - begin) + content[end:])
    with pytest.raises(MediaError, match=r"damaged|truncated"):
        decode(path)
