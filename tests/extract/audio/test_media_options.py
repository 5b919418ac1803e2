"""Which track, files in part, which files of a folder: said, listed, and in the fingerprint where they must be."""

import csv
import os
from fractions import Fraction

import av
import numpy as np
import pytest
from typer.testing import CliRunner

import emi
from cache import StaleCacheError, open_cache
from cache.fingerprint import differences
from cache.ids import MEDIA_SUFFIXES
from cache.maintenance.transfer import transfer
from cache.writer import CacheWriter
from emi.cli import app
from extract.audio.media import decode
from extract.errors import ExtractSettingsError, MediaError
from extract.modality.decoding import Decoder
from extract.settings import DecodeOptions
from extract.sources import Source, find_media, in_words, left_out

DEFAULT = av.stream.Disposition.default


def command(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def write_tracks(path, levels, default=None, picture=False):
    """One second at a level of its own in each track."""
    with av.open(str(path), "w") as out:
        if picture:
            video = out.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 32, 32, "yuv420p"
        streams = [
            out.add_stream("pcm_s16le" if path.suffix == ".mkv" else "aac", rate=16_000, layout="mono") for _ in levels
        ]
        for i, stream in enumerate(streams):
            stream.disposition = DEFAULT if i == default else av.stream.Disposition(0)
        if picture:
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
            frame.pts, frame.time_base = 0, Fraction(1, 10)
            out.mux([*video.encode(frame), *video.encode()])
        for stream, level in zip(streams, levels, strict=True):
            samples = np.full((1, 16_000), level)
            kind = stream.codec_context.format.name
            stored = samples.astype(np.float32) if kind == "fltp" else (samples * 32768).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(stored, format=kind, layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            out.mux([*stream.encode(frame), *stream.encode()])
    return path


def level(waveform):
    return round(float(waveform.samples[4000:12_000].mean()), 2)


@pytest.mark.parametrize(("default", "expected"), [(None, 0.1), (0, 0.1), (1, 0.2), (2, 0.4)])
def test_the_track_marked_default_is_taken_else_the_first(tmp_path, default, expected):
    path = write_tracks(tmp_path / "x.mkv", [0.1, 0.2, 0.4], default, picture=True)
    found = decode(path)
    assert level(found) == expected
    assert found.track.startswith(f"audio track {1 + (default or 0)} of 3")


@pytest.mark.parametrize("track", [1, 2, 3])
def test_a_track_is_chosen_by_its_number_from_one_on(tmp_path, track):
    path = write_tracks(tmp_path / "x.mkv", [0.1, 0.2, 0.4], default=1, picture=True)
    options = DecodeOptions(track=track)
    assert level(decode(path, options=options)) == [0.1, 0.2, 0.4][track - 1]
    assert decode(path, options=options).track == f"audio track {track} of 3 (asked for)"


def test_a_track_number_too_high_is_an_error_with_the_number_of_tracks(tmp_path, media):
    path = write_tracks(tmp_path / "x.mkv", [0.1, 0.2])
    with pytest.raises(MediaError, match=r"has 2 audio tracks, and --track 3 was asked for"):
        decode(path, options=DecodeOptions(track=3))
    media.write(tmp_path / "x.wav", media.tones(0.2))
    with pytest.raises(MediaError, match=r"has 1 audio track, and --track 2"):
        decode(tmp_path / "x.wav", options=DecodeOptions(track=2))
    assert decode(tmp_path / "x.wav", options=DecodeOptions(track=1)).track == ""
    with pytest.raises(ExtractSettingsError, match="from 1"):
        DecodeOptions(track=0)


def test_a_decoding_process_uses_the_options_and_returns_track_and_cut(tmp_path):
    path = write_tracks(tmp_path / "x.mkv", [0.1, 0.2])
    decoder = Decoder()
    try:
        found = decoder.read(Source("x", path), 0.5, DecodeOptions(track=2))
    finally:
        decoder.close()
    assert level(found) == 0.2
    assert found.track == "audio track 2 of 2 (asked for)"


def test_the_chosen_track_is_printed_and_a_track_number_is_in_the_fingerprint(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in "ab":
        write_tracks(tmp_path / "clips" / f"{name}.mkv", [0.1, 0.2], default=1)
    shown = command("extract", tmp_path / "clips", "--cache", tmp_path / "f.zarr")
    (line,) = [line for line in shown.splitlines() if "several audio tracks" in line]
    assert "2 files have" in line
    assert "audio track 2 of 2 (marked default): 2" in line
    with pytest.raises(StaleCacheError, match=r"track \(stored absent, wanted 1\)"):
        emi.extract(tmp_path / "clips", tmp_path / "f.zarr", track=1)
    emi.extract(tmp_path / "clips", tmp_path / "one.zarr", track=1)
    with open_cache(tmp_path / "f.zarr") as default, open_cache(tmp_path / "one.zarr") as one:
        assert "track" not in default.fingerprint
        assert one.fingerprint["track"] == 1
        assert default["a"].frames.tobytes() != one["a"].frames.tobytes()


def halves(folder, media, names="ab"):
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        media.write(folder / f"{name}.wav", media.speech(2.0, i))
        (folder / f"{name}.wav").write_bytes((folder / f"{name}.wav").read_bytes()[:32_000])
    media.write(folder / "whole.wav", media.speech(1.0, 9))


def listed(path):
    with path.open(newline="") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def test_truncated_clips_are_refused_or_used_and_listed(tmp_path, media):
    halves(tmp_path / "clips", media)
    shown = command("extract", tmp_path / "clips", "--cache", tmp_path / "f.zarr", code=1)
    assert "--allow-truncated" in shown
    assert set(listed(tmp_path / "failures.csv")) == {"a", "b"}
    shown = command("extract", tmp_path / "clips", "--cache", tmp_path / "f.zarr", "--allow-truncated")
    assert "2 clips were used although cut off or damaged (also in" in shown
    assert not (tmp_path / "failures.csv").exists()
    rows = listed(tmp_path / "truncated.csv")
    assert set(rows) == {"a", "b"}
    assert all("truncated" in reason for reason in rows.values())
    with open_cache(tmp_path / "f.zarr") as store:
        assert store["a"].seconds == pytest.approx(1.0, abs=0.01)
    command("extract", tmp_path / "clips", "--cache", tmp_path / "f.zarr")  # they are there
    assert set(listed(tmp_path / "truncated.csv")) == {"a", "b"}


def test_a_clip_whose_file_is_complete_again_leaves_truncated_csv(tmp_path, media):
    halves(tmp_path / "clips", media)
    emi.extract(tmp_path / "clips", tmp_path / "f.zarr", allow_truncated=True)
    for name in "ab":
        media.write(tmp_path / "clips" / f"{name}.wav", media.speech(1.5, 3))
    summary = emi.extract(tmp_path / "clips", tmp_path / "f.zarr", refresh=True)
    assert summary.written == 2
    assert not (tmp_path / "truncated.csv").exists()


def test_truncated_clips_are_listed_before_an_interruption(tmp_path, media):
    from extract import run
    from extract.settings import ExtractSettings

    halves(tmp_path / "clips", media)
    seen = []

    def look(done, total, seconds):
        seen.append((tmp_path / "truncated.csv").exists() and set(listed(tmp_path / "truncated.csv")))

    settings = ExtractSettings(allow_truncated=True)
    run.extract(tmp_path / "clips", tmp_path / "f.zarr", settings, on_progress=look)
    assert {"a", "b"} in seen


def test_the_version_of_the_decoder_is_compared_and_absent_is_the_first(tmp_path, media):
    (tmp_path / "clips").mkdir()
    media.write(tmp_path / "clips" / "a.wav", media.speech(0.5))
    emi.extract(tmp_path / "clips", tmp_path / "new.zarr")
    with open_cache(tmp_path / "new.zarr") as store:
        assert store.fingerprint["decoder"] == 2
        older = {key: value for key, value in store.fingerprint.items() if key != "decoder"}
        header = type(store.header)(
            fingerprint=older, dim=store.dim, hop_seconds=store.hop_seconds, provenance=store.header.provenance
        )
        assert differences(older, older | {"decoder": 1}) == []
        with CacheWriter(tmp_path / "old.zarr", header) as writer:
            writer.add(store["a"])
    with pytest.raises(StaleCacheError, match=r"decoder \(stored 1, wanted 2\).*media into sound.*new --cache path"):
        emi.extract(tmp_path / "clips", tmp_path / "old.zarr")
    with pytest.raises(StaleCacheError, match=r"decoder \(stored 2, wanted 1\)"):
        transfer([tmp_path / "old.zarr", tmp_path / "new.zarr"], tmp_path / "both.zarr")
    with open_cache(tmp_path / "old.zarr") as store:
        assert store["a"].frames.any()


def test_every_media_suffix_is_taken_in_either_case_and_the_others_are_named(tmp_path):
    wanted = ".mka .3gp .amr .ts .flv .au .caf .aac .aiff .mts .m2ts .mpg .mpeg .3g2 .m4b .mp2 .ac3 .w64 .rf64 .wv .ape"
    wanted += " .tta .spx .gsm .wav .mp4 .webm .opus"
    assert set(wanted.split()) <= MEDIA_SUFFIXES
    for i, suffix in enumerate(wanted.split()):
        (tmp_path / f"a{i}{suffix}").touch()
        (tmp_path / f"b{i}{suffix.upper()}").touch()
    (tmp_path / "sub").mkdir()
    for name in ("labels.csv", "notes.txt", "sub/more.txt", "README", ".hidden", "clip.xyz"):
        (tmp_path / name).touch()
    (tmp_path / "f.zarr").mkdir()
    (tmp_path / "f.zarr" / "zarr.json").touch()
    assert len(find_media(tmp_path)) == 2 * len(wanted.split())
    assert left_out(tmp_path) == {".txt": 2, ".csv": 1, "without suffix": 1, ".xyz": 1}
    assert in_words(left_out(tmp_path)).startswith("5 files (.txt 2, ")
    assert left_out(tmp_path / "labels.csv") == {}
    (tmp_path / os.fsdecode(b"clip.x\xe0z")).touch()
    in_words(left_out(tmp_path)).encode()  # can be printed, whatever the name


def test_skipped_files_of_a_folder_are_printed(tmp_path, media):
    media.write(tmp_path / "a.wav", media.speech(0.3))
    (tmp_path / "b.xyz").touch()
    shown = command("extract", tmp_path, "--cache", tmp_path / "f.zarr", "--dry-run")
    assert "left out: 1 file (.xyz 1)" in shown
