"""Which files are whole: placeholders of pipes, cuts without decoding, joined files; and how long they are."""

import math
import struct
import subprocess
import sys

import av
import numpy as np
import pytest

from extract.audio.media import decode
from extract.errors import MediaError
from extract.settings import DecodeOptions

PLACEHOLDERS = [
    0,
    0x7FFFF000,
    0x7FFFFFFF,
    0x7FFFFFFF - 36,
    0x80000000,
    0x7FFF0000,
    0x80000024,
    0xFFFFFFFF,
    0xFFFFFFFF - 44,
    0xFFFFFFFE,
]


def put(path, at, kind, value):
    content = bytearray(path.read_bytes())
    struct.pack_into(kind, content, at, value)
    path.write_bytes(content)


def chunk_at(path, name):
    return path.read_bytes().index(name)


@pytest.fixture
def sound(media):
    return media.tones(2.0, 16_000)


@pytest.mark.parametrize("size", PLACEHOLDERS)
def test_a_wav_with_placeholder_sizes_is_complete(tmp_path, media, sound, size):
    media.write(tmp_path / "x.wav", sound)
    expected = decode(tmp_path / "x.wav")
    put(tmp_path / "x.wav", 4, "<I", min(size + 36, 0xFFFFFFFF))
    put(tmp_path / "x.wav", chunk_at(tmp_path / "x.wav", b"data") + 4, "<I", size)
    found = decode(tmp_path / "x.wav")
    np.testing.assert_array_equal(found.samples, expected.samples)
    assert found.seconds == decode(tmp_path / "x.wav", 0.5).seconds == 2.0


@pytest.mark.parametrize("wide", [0, 0xFFFFFFFFFFFFFFFF])
def test_an_rf64_from_a_pipe_is_whole_and_half_of_one_is_not(tmp_path, media, sound, wide):
    media.write(tmp_path / "x.wav", sound, options={"rf64": "always"})
    whole = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "half.wav").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="truncated"):
        decode(tmp_path / "half.wav")
    put(tmp_path / "x.wav", chunk_at(tmp_path / "x.wav", b"ds64") + 16, "<Q", wide)
    assert decode(tmp_path / "x.wav").seconds == decode(tmp_path / "x.wav", 0.5).seconds == 2.0


@pytest.mark.parametrize("size", [0, 0x7F000000, 0x7F000008, 0xFFFFFFFF])
def test_an_aiff_from_a_pipe_is_whole_and_half_of_one_is_not(tmp_path, media, sound, size):
    path = media.write_on_clock(tmp_path / "x.aiff", sound, "pcm_s16be", rate=16_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="truncated"):
        decode(path)
    path.write_bytes(content)
    put(path, 4, ">I", size)
    put(path, chunk_at(path, b"COMM") + 10, ">I", size // 2)
    put(path, chunk_at(path, b"SSND") + 4, ">I", size)
    assert decode(path).seconds == decode(path, 0.5).seconds == 2.0


@pytest.mark.parametrize(
    ("suffix", "codec", "at", "kind", "value"),
    [
        (".au", "pcm_s16be", lambda _: 8, ">I", 0xFFFFFFFF),
        (".caf", "pcm_s16be", lambda path: chunk_at(path, b"data") + 4, ">q", -1),
        (".w64", "pcm_s16le", lambda path: chunk_at(path, b"data\xf3\xac") + 16, "<q", -1),
        (".w64", "pcm_s16le", lambda path: chunk_at(path, b"data\xf3\xac") + 16, "<q", 0),
        (".w64", "pcm_s16le", lambda path: chunk_at(path, b"data\xf3\xac") + 16, "<q", (1 << 63) - 1),
    ],
)
def test_other_formats_from_a_pipe_are_whole_and_half_of_one_is_not(
    tmp_path, media, sound, suffix, codec, at, kind, value
):
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec, rate=16_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MediaError, match="truncated"):
        decode(path)
    path.write_bytes(content)
    put(path, at(path), kind, value)
    assert decode(path).seconds == decode(path, 0.5).seconds == 2.0


def test_the_header_of_a_stream_is_mended_without_a_change_to_the_file(tmp_path, media, sound):
    path = media.write_on_clock(tmp_path / "x.w64", sound, "pcm_s16le", rate=16_000)
    expected = decode(path).samples
    put(path, 16, "<q", -1)
    put(path, chunk_at(path, b"data\xf3\xac") + 16, "<q", -1)
    before = path.read_bytes()
    np.testing.assert_array_equal(decode(path).samples, expected)
    assert path.read_bytes() == before


def copied(source, target, seconds):
    """The first packets of a FLAC, behind a header that states the length of the whole."""
    with av.open(str(source)) as file, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(file.streams.audio[0])
        for packet in file.demux(audio=0):
            if packet.pts is not None and packet.pts * packet.time_base < seconds:
                packet.stream = stream
                out.mux(packet)
    content = bytearray(target.read_bytes())
    content[18:42] = source.read_bytes()[18:42]  # STREAMINFO from the rate on: samples in all, and their MD5
    target.write_bytes(content)


def test_a_flac_cut_at_a_frame_is_complete_and_an_interrupted_download_is_not(tmp_path, media):
    media.write(tmp_path / "whole.flac", media.tones(6.0, 16_000))
    copied(tmp_path / "whole.flac", tmp_path / "x.flac", 2.0)
    found = decode(tmp_path / "x.flac")
    assert found.seconds == pytest.approx(2.0, abs=0.3)
    np.testing.assert_array_equal(found.samples, decode(tmp_path / "whole.flac").samples[: len(found.samples)])
    assert decode(tmp_path / "x.flac", 1.0).seconds == pytest.approx(found.seconds, abs=0.01)
    content = (tmp_path / "x.flac").read_bytes()
    for missing in (1, 2, 3, 100):
        (tmp_path / "x.flac").write_bytes(content[:-missing])
        with pytest.raises(MediaError, match="truncated"):
            decode(tmp_path / "x.flac")


def test_a_flac_that_states_no_length_is_read_to_its_end_and_a_part_of_it_is_not(tmp_path, media, sound):
    media.write(tmp_path / "x.flac", sound)
    put(tmp_path / "x.flac", 22, ">I", 0)
    content = bytearray((tmp_path / "x.flac").read_bytes())
    content[21] &= 0xF0
    (tmp_path / "x.flac").write_bytes(content)
    assert decode(tmp_path / "x.flac").seconds == decode(tmp_path / "x.flac", 0.5).seconds == 2.0
    (tmp_path / "x.flac").write_bytes(content[:-7])
    with pytest.raises(MediaError, match="truncated"):
        decode(tmp_path / "x.flac")


ID3V1 = b"TAG" + bytes(125)


@pytest.mark.parametrize("between", [b"", ID3V1])
@pytest.mark.parametrize("count", [2, 3])
def test_joined_mp3s_are_read_whole(tmp_path, media, count, between):
    media.write(tmp_path / "a.mp3", media.tones(3.0, 48_000), 48_000)
    (tmp_path / "x.mp3").write_bytes(((tmp_path / "a.mp3").read_bytes() + between) * count)
    assert decode(tmp_path / "x.mp3").seconds == pytest.approx(3.0 * count, abs=0.1)
    assert decode(tmp_path / "x.mp3", 1.0).seconds == pytest.approx(3.0 * count, abs=0.15)


def test_rubbish_behind_the_stated_end_of_an_mp3_is_harmless(tmp_path, media):
    media.write(tmp_path / "a.mp3", media.tones(3.0, 48_000), 48_000)
    whole = (tmp_path / "a.mp3").read_bytes()
    for rubbish in (bytes(3000), b"x" * 3000, ID3V1):
        (tmp_path / "x.mp3").write_bytes(whole + rubbish)
        assert decode(tmp_path / "x.mp3").seconds == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".ogg", "libopus"), (".aac", "aac"), (".flac", "flac"), (".mka", "aac"), (".ts", "aac"), (".ac3", "ac3")],
)
def test_other_joined_files_are_read_whole(tmp_path, media, suffix, codec):
    kind = {".aac": "adts"}.get(suffix)
    path = media.write_on_clock(tmp_path / f"a{suffix}", media.tones(1.5, 48_000), codec, container=kind)
    (tmp_path / f"x{suffix}").write_bytes(path.read_bytes() * 2)
    assert decode(tmp_path / f"x{suffix}").seconds == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".wav", "pcm_s16le"),
        (".aiff", "pcm_s16be"),
        (".caf", "pcm_s16be"),
        (".w64", "pcm_s16le"),
        (".flv", "libmp3lame"),
        (".mp4", "aac"),
    ],
)
def test_joined_files_of_which_ffmpeg_reads_the_first_are_refused(tmp_path, media, suffix, codec):
    sound = media.tones(1.5, 44_100)
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec, rate=44_100)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(MediaError, match=r"two files in one: 1\.5. s could be decoded"):
        decode(path)
    length = decode(path, 0.5).seconds
    assert math.isnan(length) or length == pytest.approx(3.0, abs=0.1)


LENGTHS = [
    (".webm", "libopus", "webm", {"live": "1"}),
    (".mka", "libopus", "matroska", {"live": "1"}),
    (".mp3", "libmp3lame", "mp3", {"write_xing": "0"}),
    (".aac", "aac", "adts", {}),
    (".mp2", "mp2", "mp2", {}),
    (".ts", "aac", "mpegts", {}),
    (".flv", "libmp3lame", "flv", {"flvflags": "no_duration_filesize"}),
]


@pytest.mark.parametrize(("suffix", "codec", "container", "options"), LENGTHS)
def test_the_length_of_a_file_that_states_none_is_that_of_its_packets(
    tmp_path, media, suffix, codec, container, options
):
    rate = 44_100 if suffix == ".flv" else 48_000
    sound = np.concatenate([media.tones(2.0, rate), np.zeros((1, 4 * rate))], axis=1)  # misleads an estimate
    sound[:, 2 * rate :] += 1e-4
    path = media.write_on_clock(tmp_path / f"x{suffix}", sound, codec, rate=rate, container=container, options=options)
    assert decode(path).seconds == pytest.approx(6.0, abs=0.1)
    assert decode(path, 1.0).seconds == pytest.approx(6.0, abs=0.1)


def test_a_length_that_would_take_too_long_to_measure_is_unknown(tmp_path, media, monkeypatch):
    path = media.write_on_clock(tmp_path / "x.aac", media.tones(3.0, 48_000), "aac", container="adts")
    monkeypatch.setattr("extract.audio.track.MEASURED_BYTES", 100)
    assert math.isnan(decode(path, 1.0).seconds)
    assert decode(path).seconds == pytest.approx(3.0, abs=0.1)


def test_a_wav_written_into_a_pipe_by_python_is_whole(tmp_path):
    script = "import sys,wave,io; w=wave.open(sys.stdout.buffer,'wb'); w.setparams((1,2,16000,0,'NONE','')); "
    written = subprocess.run(
        [sys.executable, "-c", script + "w.writeframesraw(bytes(64000)); w._patchheader=lambda: None; w.close()"],
        capture_output=True,
        check=True,
    )
    (tmp_path / "x.wav").write_bytes(written.stdout)
    assert decode(tmp_path / "x.wav").seconds == 2.0


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".mkv"])
def test_a_truncated_file_is_used_up_to_the_cut_where_that_is_allowed(tmp_path, media, suffix):
    path = tmp_path / f"x{suffix}"
    media.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (1, 4 * 48_000)), 48_000)
    whole = decode(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    part = decode(path, options=DecodeOptions(allow_truncated=True))
    assert "truncated" in part.cut_off
    assert not whole.cut_off
    assert 0.9 < part.seconds < 2.5
    inside = len(part.samples) - 1000
    np.testing.assert_allclose(part.samples[:inside], whole.samples[:inside], rtol=0, atol=1e-6)


def test_a_file_without_any_sound_is_refused_in_any_case(tmp_path, media):
    (tmp_path / "x.mp3").write_bytes(b"no sound" * 100)
    with pytest.raises(MediaError):
        decode(tmp_path / "x.mp3", options=DecodeOptions(allow_truncated=True))
