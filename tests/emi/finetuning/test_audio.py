"""Decoded audio in one memory map: the very waveforms that extraction sees, and never those of another file."""

import numpy as np
import pytest
import torch

from emi.finetuning.audio import LAYOUT, decode_audio, open_audio, request_of, waveform
from emi.finetuning.decode_once import mended
from emi.finetuning.settings import FinetuneSettings
from extract.audio.media import decode
from extract.settings import DecodeOptions
from extract.sources import Source, find_media
from train_head.errors import RunFolderError
from train_head.runs.run_folder import prepare_folder


def write(path, samples, rate, kind="<i2"):
    import wave

    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype(kind).tobytes())


@pytest.fixture
def clips(tmp_path):
    """Two of 16 kHz, which 16 bits hold exactly, and one between them of 44.1 kHz, which they do not."""
    folder = tmp_path / "clips"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, rate in (("a", 16_000), ("b", 44_100), ("c", 16_000)):
        write(folder / f"{name}.wav", rng.uniform(-1, 1, rate // 2), rate)
    return folder


def exactly(audio, source, max_seconds=12.0):
    found = waveform(audio.samples, audio.starts[source.id], audio.lengths[source.id])
    assert found.dtype == torch.float32
    return np.array_equal(found.numpy(), decode(source.path, max_seconds).samples)


@pytest.mark.parametrize(
    ("names", "stored"),
    [
        ("ac", torch.int16),
        ("abc", torch.float32),
        ("bca", torch.float32),
        ("b", torch.float32),
    ],
)
def test_every_clip_is_what_extraction_decodes(clips, tmp_path, names, stored):
    sources = [Source(name, clips / f"{name}.wav") for name in names]
    decode_audio(tmp_path / "audio", sources, 12.0)
    audio = open_audio(tmp_path / "audio", sources, 12.0)
    assert audio.samples.dtype == stored
    assert all(exactly(audio, source) for source in sources)
    assert len(audio.samples) == sum(audio.lengths.values())


def test_int16_rounds_what_it_cannot_hold(clips, tmp_path):
    sources = find_media(clips)
    decode_audio(tmp_path / "audio", sources, 12.0, "int16")
    audio = open_audio(tmp_path / "audio", sources, 12.0, "int16")
    assert audio.samples.dtype == torch.int16
    found = waveform(audio.samples, audio.starts["b"], audio.lengths["b"]).numpy()
    expected = np.clip(decode(clips / "b.wav").samples, -1, 32767 / 32768)
    assert 0 < np.abs(found - expected).max() <= 0.5 / 32768
    assert open_audio(tmp_path / "audio", sources, 12.0, "auto") is None


def test_the_cut_is_that_of_extraction(clips, tmp_path):
    sources = find_media(clips)
    decode_audio(tmp_path / "audio", sources, 0.3)
    audio = open_audio(tmp_path / "audio", sources, 0.3)
    assert set(audio.lengths.values()) == {4800}
    assert all(exactly(audio, source, 0.3) for source in sources)
    assert open_audio(tmp_path / "audio", sources, 0.4) is None


def test_a_changed_new_or_renamed_file_is_decoded_again(clips, tmp_path):
    sources = find_media(clips)
    decode_audio(tmp_path / "audio", sources, 12.0)
    assert open_audio(tmp_path / "audio", sources[:2], 12.0) is not None  # a part of them is there too
    write(clips / "d.wav", np.zeros(100), 16_000)
    assert open_audio(tmp_path / "audio", find_media(clips), 12.0) is None
    write(clips / "a.wav", np.zeros(8000), 16_000)
    assert open_audio(tmp_path / "audio", sources, 12.0) is None
    (clips / "a.wav").unlink()
    assert open_audio(tmp_path / "audio", sources, 12.0) is None


def test_a_decoding_that_was_broken_off_leaves_no_map(clips, tmp_path):
    sources, seen = find_media(clips), []

    def stop(done, total, seconds):
        seen.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_audio(tmp_path / "audio", sources, 12.0, on_progress=stop)
    assert open_audio(tmp_path / "audio", sources, 12.0) is None
    assert seen == [(1, 3), (2, 3)]


def test_unreadable_clips_are_listed_and_the_others_are_there(clips, tmp_path):
    (clips / "b.wav").write_bytes(b"")
    sources = find_media(clips)
    decode_audio(tmp_path / "audio", sources, 12.0)
    audio = open_audio(tmp_path / "audio", sources, 12.0)
    assert [(failure.id, failure.reason) for failure in audio.failures] == [("b", "is empty (0 bytes)")]
    assert list(audio.starts) == ["a", "c"]
    write(clips / "b.wav", np.zeros(100), 16_000)  # mended
    assert open_audio(tmp_path / "audio", sources, 12.0) is None
    assert (tmp_path / "audio" / "failures.csv").is_file()


def test_two_that_decode_into_one_folder_at_once_take_turns(clips, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    sources = find_media(clips)
    orders = [sources, sources[::-1], sources[1:]] * 4
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda order: decode_audio(tmp_path / "audio", order, 12.0), orders))
    audio = open_audio(tmp_path / "audio", sources[1:], 12.0)
    assert all(exactly(audio, source) for source in sources[1:])
    assert len(list((tmp_path / "audio").glob("*.npy"))) == 1


def test_files_of_the_users_own_stay_as_they_are(clips, tmp_path):
    folder = tmp_path / "audio"
    folder.mkdir()
    (folder / "index.json").write_text("[]")
    (folder / "samples.npy").write_text("mine")
    decode_audio(folder, find_media(clips), 12.0)
    assert (folder / "samples.npy").read_text() == "mine"


def test_what_failed_for_a_passing_reason_is_found_out(clips, tmp_path):
    sound = (clips / "b.wav").read_bytes()
    (clips / "b.wav").write_bytes(b"")
    request = request_of(find_media(clips), 12.0)
    decode_audio(tmp_path / "audio", request.sources, 12.0)
    failures = open_audio(tmp_path / "audio", request.sources, 12.0).failures
    assert not mended(failures, LAYOUT, request)
    (clips / "b.wav").write_bytes(sound)
    assert mended(failures, LAYOUT, request)


def test_a_clip_that_failed_before_it_was_opened_is_listed_and_not_decoded_again(clips, tmp_path, monkeypatch):
    sources = [Source("a", clips / "a.wav"), Source("x", clips / "c.wav", "has a name that is not UTF-8; rename it")]
    decode_audio(tmp_path / "audio", sources, 12.0)
    audio = open_audio(tmp_path / "audio", sources, 12.0)
    assert list(audio.starts) == ["a"]
    assert [(failure.id, failure.reason) for failure in audio.failures] == [("x", sources[1].problem)]
    assert not mended(audio.failures, LAYOUT, request_of(sources, 12.0))


def test_files_in_part_are_used_where_that_is_allowed_and_the_map_says_which(clips, tmp_path):
    content = (clips / "a.wav").read_bytes()
    (clips / "a.wav").write_bytes(content[: len(content) // 2])
    sources, allowed = find_media(clips), DecodeOptions(allow_truncated=True)
    decode_audio(tmp_path / "audio", sources, 12.0)
    assert [failure.id for failure in open_audio(tmp_path / "audio", sources, 12.0).failures] == ["a"]
    assert open_audio(tmp_path / "audio", sources, 12.0, "auto", allowed) is None
    decode_audio(tmp_path / "audio", sources, 12.0, "auto", allowed)
    audio = open_audio(tmp_path / "audio", sources, 12.0, "auto", allowed)
    assert (audio.failures, [note.id for note in audio.notes]) == ([], ["a"])
    assert "truncated" in audio.notes[0].cut_off
    assert "a" in (tmp_path / "audio" / "truncated.csv").read_text()
    assert open_audio(tmp_path / "audio", sources, 12.0, "auto", DecodeOptions(track=1)) is None


def test_settings_of_decoding_are_recorded_only_where_they_are_given():
    assert {"track", "allow_truncated"}.isdisjoint(FinetuneSettings().to_toml())
    given = FinetuneSettings(track=2, allow_truncated=True)
    assert given.decoding == DecodeOptions(track=2, allow_truncated=True)
    assert FinetuneSettings(**given.to_toml()) == given


def test_a_run_from_before_the_decoder_had_a_version_resumes_where_the_sound_is_the_same(tmp_path):
    now = {"data": {"audio_sha256": "a"}, "backbone": {"fingerprint": {"layer": "last", "decoder": 2}}}
    before = {"data": {"audio_sha256": "a"}, "backbone": {"fingerprint": {"layer": "last"}}}
    prepare_folder(tmp_path / "run", before)
    prepare_folder(tmp_path / "run", now)
    for other in ({"data": {"audio_sha256": "b"}}, {"backbone": {"fingerprint": {"layer": "first", "decoder": 2}}}):
        with pytest.raises(RunFolderError, match="holds another run"):
            prepare_folder(tmp_path / "run", now | other)
