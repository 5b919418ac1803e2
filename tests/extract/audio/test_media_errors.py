"""Every way in which a file can be unusable, and the reason that is given."""

import os
import re
import struct

import numpy as np
import pytest

from extract.audio.media import decode
from extract.errors import MediaError


def reason(path, max_seconds=12.0):
    with pytest.raises(MediaError) as caught:
        decode(path, max_seconds)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_is_named_as_missing(tmp_path):
    assert reason(tmp_path / "x.wav") == "does not exist"


def test_an_empty_file_is_named_as_empty(tmp_path):
    (tmp_path / "x.wav").touch()
    assert reason(tmp_path / "x.wav") == "is empty (0 bytes)"


def test_a_folder_named_like_a_clip_is_named_as_folder(tmp_path):
    (tmp_path / "x.wav").mkdir()
    assert reason(tmp_path / "x.wav") == "is a folder, not a media file"


def test_a_dangling_link_does_not_exist(tmp_path):
    (tmp_path / "x.wav").symlink_to(tmp_path / "gone.wav")
    assert reason(tmp_path / "x.wav") == "does not exist"


def test_a_name_too_long_for_the_file_system_is_a_reason_not_a_crash(tmp_path):
    assert "too long" in reason(tmp_path / f"{'x' * 300}.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_says_so(tmp_path, media):
    media.write(tmp_path / "x.wav", media.tones(0.1))
    (tmp_path / "x.wav").chmod(0)
    assert "ermission denied" in reason(tmp_path / "x.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_says_so(tmp_path, media):
    (tmp_path / "locked").mkdir()
    media.write(tmp_path / "locked" / "x.wav", media.tones(0.1))
    (tmp_path / "locked").chmod(0)
    try:
        assert "ermission denied" in reason(tmp_path / "locked" / "x.wav")
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_an_error_of_the_file_system_is_a_reason(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    (tmp_path / "x.wav").write_bytes(b"RIFF")
    for method in ("exists", "stat", "is_dir"):
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path." + method, fail)
            assert error.strerror in reason(tmp_path / "x.wav")


@pytest.mark.parametrize("content", [b"hello, this is text\n" * 40, b"\0" * 5000, bytes(range(256)) * 20, b"R"])
def test_a_file_that_is_not_media_is_reported_as_such(tmp_path, content):
    (tmp_path / "x.wav").write_bytes(content)
    assert reason(tmp_path / "x.wav").startswith("is not a media file that FFmpeg can read")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_a_silent_film_has_no_audio_track(tmp_path, media, suffix):
    media.write(tmp_path / f"x{suffix}", None)
    assert reason(tmp_path / f"x{suffix}") == "has no audio track"


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".m4a", ".mp4", ".mkv", ".webm"])
def test_the_first_part_of_a_file_is_refused_as_truncated(tmp_path, media, suffix):
    path = tmp_path / f"x{suffix}"
    media.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (1, 6 * 48000)), 48000)
    content = path.read_bytes()
    for part in (0.05, 0.25, 0.5, 0.75, 0.94):
        path.write_bytes(content[: int(part * len(content))])
        assert re.search("truncated|not a media file|no audio track", reason(path))


@pytest.mark.parametrize("seconds", [0.1, 2.0])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_even_one_missing_byte_of_these_formats_is_noticed(tmp_path, media, suffix, seconds):
    path = tmp_path / f"x{suffix}"
    media.write(path, media.tones(seconds), 16000)
    content = path.read_bytes()
    for missing in (1, 2, 100, len(content) // 20, len(content) // 2):
        path.write_bytes(content[:-missing])
        assert re.search("truncated|not a media file", reason(path))


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_f64le"])
def test_half_of_any_wav_is_refused_as_truncated(tmp_path, media, codec):
    media.write(tmp_path / "x.wav", media.tones(2.0, 44100, 6), 44100, codec)
    content = (tmp_path / "x.wav").read_bytes()
    (tmp_path / "x.wav").write_bytes(content[: len(content) // 2])
    assert "truncated" in reason(tmp_path / "x.wav")


@pytest.mark.parametrize("suffix", [".mp4", ".m4a"])
def test_half_of_a_film_whose_index_comes_first_is_refused_as_truncated(tmp_path, media, suffix):
    path = tmp_path / f"x{suffix}"
    media.write(path, media.tones(4.0, 44100), 44100, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "truncated" in reason(path)


def wav_header(data_bytes: int) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + data_bytes, b"WAVE") + form + struct.pack("<4sI", b"data", data_bytes)


@pytest.mark.parametrize("stated", [0, 32000])
def test_a_header_without_a_sample_is_refused(tmp_path, stated):
    (tmp_path / "x.wav").write_bytes(wav_header(stated))
    reason(tmp_path / "x.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_time(tmp_path, media, value):
    samples = media.tones(1.0, 16000, 2)
    samples[1, 8000] = value
    media.write(tmp_path / "x.wav", samples, 16000, "pcm_f32le")
    assert reason(tmp_path / "x.wav").endswith("(NaN or infinity), the first at 0.500 s")
    assert len(decode(tmp_path / "x.wav", 0.2).samples) == 3200


PLAYLISTS = {
    "m3u": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {0}\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" bandwidth="1"><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".m4a", ".webm"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_in_disguise_is_not_followed(tmp_path, media, kind, suffix):
    media.write(tmp_path / f"secret{suffix}", media.tones(1.0, 48000), 48000)
    (tmp_path / f"x{suffix}").write_text(PLAYLISTS[kind].format(f"secret{suffix}"))
    reason(tmp_path / f"x{suffix}")
