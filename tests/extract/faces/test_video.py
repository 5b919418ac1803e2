"""Each row is the picture that was due, on the clock of the sound, whatever the container states."""

import math
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from extract.errors import MediaError
from extract.faces.upright import Upright
from extract.faces.video import BLOCK_ROWS, Video
from extract.settings import DecodeOptions
from tests.extract.faces.videos import clock_picture, cut_by_edit_list, read_clock, write_video

CONSTANT = [i / 25 for i in range(60)]
VARIABLE = [0.0, *np.random.default_rng(0).choice([0.011, 0.033, 0.04, 0.08, 0.31], 60).cumsum().round(3).tolist()]
SLOW = [0.0, 0.9, 1.7, 2.6]
CONTAINERS = [
    (".mp4", "libx264"),
    (".mov", "libx264"),
    (".mkv", "libx264"),
    (".webm", "libvpx"),
    (".ts", "libx264"),
    (".flv", "flv"),
    (".wmv", "wmv2"),
]


def rows_of(path, fps=6.0, **settings):
    """(start, end, time that the picture shows or None) of each row, and the video."""
    video = Video(path, fps=fps, **settings)
    rows = [
        (float(start), float(end), read_clock(image) if shown else None)
        for block in video
        for image, (start, end), shown in zip(block.images, block.times, block.shown, strict=True)
    ]
    return rows, video


def due(times, time):
    """The start of the picture that is shown at a time; containers round to milliseconds."""
    return max((round(t, 3) for t in times if t <= time + 0.0006), default=None)


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
@pytest.mark.parametrize("times", [CONSTANT, VARIABLE, SLOW], ids=["constant", "variable", "slow"])
@pytest.mark.parametrize("fps", [6.0, 25.0, 30.0])
def test_every_row_is_the_picture_that_is_shown_at_its_time(tmp_path, suffix, codec, times, fps):
    path = write_video(tmp_path / f"x{suffix}", times, codec=codec)
    rows, video = rows_of(path, fps)
    assert [row[:2] for row in rows] == [(i / fps, (i + 1) / fps) for i in range(len(rows))]
    assert [row[2] for row in rows] == [due(times, i / fps) for i in range(len(rows))]
    assert video.seconds == pytest.approx(times[-1] + 0.04, abs=0.05 if suffix in (".mp4", ".mov") else 0.9)
    assert len(rows) == math.ceil(video.seconds * fps - 0.01)


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_native_gives_every_frame_with_its_start_and_end(tmp_path, suffix, codec):
    rows, _ = rows_of(write_video(tmp_path / f"x{suffix}", VARIABLE, codec=codec), fps=None)
    assert [row[2] for row in rows] == VARIABLE
    assert [row[0] for row in rows] == pytest.approx(VARIABLE, abs=0.0006)
    assert [row[1] for row in rows[:-1]] == pytest.approx(VARIABLE[1:], abs=0.0006)


@pytest.mark.parametrize("stated_rate", [1, 1000])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_rate_that_is_nonsense_changes_nothing(tmp_path, suffix, stated_rate):
    rows, _ = rows_of(write_video(tmp_path / f"x{suffix}", CONSTANT, stated_rate=stated_rate))
    assert [row[2] for row in rows] == [due(CONSTANT, i / 6) for i in range(15)]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_container_without_presentation_times_gives_pictures_in_order(tmp_path, codec):
    rows, _ = rows_of(write_video(tmp_path / "x.avi", CONSTANT, codec=codec), fps=None)
    assert [row[0] for row in rows] == pytest.approx(CONSTANT)
    assert [row[2] for row in rows] == CONSTANT


def test_a_raw_stream_has_the_times_of_its_durations_and_says_so(tmp_path):
    rows, video = rows_of(write_video(tmp_path / "x.h264", CONSTANT), fps=None)
    assert [row[0] for row in rows] == pytest.approx(CONSTANT)
    assert "durations" in video.note


@pytest.mark.parametrize(("suffix", "sound"), [(".mp4", "aac"), (".mov", "pcm_s16le"), (".mkv", "pcm_s16le")])
def test_pictures_that_start_after_the_sound_keep_their_late_start(tmp_path, suffix, sound):
    path = write_video(tmp_path / f"x{suffix}", CONSTANT, shift=0.7, sound=1.0, sound_codec=sound)
    rows, video = rows_of(path)
    assert [row[2] for row in rows] == [due([t + 0.7 for t in CONSTANT], i / 6) for i in range(len(rows))]
    assert [row[2] for row in rows[:5]] == [None] * 5
    assert video.seconds == pytest.approx(3.1, abs=0.01)
    assert not next(iter(Video(path, fps=6))).images[0].any()
    assert rows_of(path, fps=None)[0][0][::2] == pytest.approx((0.7, 0.7))


def test_a_picture_that_is_late_by_an_encoders_delay_is_shown_from_the_start(tmp_path):
    path = write_video(tmp_path / "x.mkv", CONSTANT, shift=0.08, sound=1.0, sound_codec="pcm_s16le")
    assert [row[2] for row in rows_of(path)[0][:2]] == [0.08, 0.16]


@pytest.mark.parametrize("seconds", [0.5, 1.02])
def test_what_an_edit_list_cuts_is_not_shown(tmp_path, seconds):
    path = write_video(tmp_path / "x.mp4", CONSTANT, options={"g": "12"})
    cut_by_edit_list(path, seconds)
    rows, video = rows_of(path)
    assert video.seconds == pytest.approx(2.4 - seconds, abs=0.05)
    for start, _, shown in rows:
        assert shown == pytest.approx(seconds + start, abs=0.041)


@pytest.mark.parametrize("start", [100.0, 20_000.0])
def test_a_clock_that_starts_anywhere_is_that_of_the_first_picture(tmp_path, start):
    path = write_video(tmp_path / "x.mkv", CONSTANT, b_frames=0)
    moved = tmp_path / "moved.mkv"
    with av.open(str(path)) as source, av.open(str(moved), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts + round(start * 1000), packet.dts + round(start * 1000)
                packet.stream = stream
                out.mux(packet)
    assert [row[2] for row in rows_of(moved)[0]] == [due(CONSTANT, i / 6) for i in range(15)]


def test_a_clock_that_jumps_by_an_hour_does_not_make_rows(tmp_path):
    path = write_video(tmp_path / "x.mkv", [0.0, 0.04, 0.08, 0.12, 0.16, 0.2], b_frames=0)
    moved = tmp_path / "moved.mkv"
    with av.open(str(path)) as source, av.open(str(moved), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                jump = 3_600_000 * (packet.pts > 100)
                packet.pts, packet.dts, packet.stream = packet.pts + jump, packet.pts + jump, stream
                out.mux(packet)
    assert len(rows_of(moved)[0]) == 2


@pytest.mark.parametrize("fps", [6.0, None])
def test_decoding_stops_at_the_limit(tmp_path, fps, monkeypatch):
    path = write_video(tmp_path / "x.mp4", [i / 25 for i in range(500)])
    converted = []
    monkeypatch.setattr(Upright, "__call__", lambda self, frame: converted.append(frame.pts) or self.nothing)
    rows, video = rows_of(path, fps, max_seconds=2.0)
    assert len(rows) == (12 if fps else 50)
    assert len(converted) == len(rows)
    assert video.seconds == pytest.approx(20.0)


def test_blocks_are_bounded_in_rows_and_bytes(tmp_path, monkeypatch):
    path = write_video(tmp_path / "x.mp4", [i / 25 for i in range(150)])
    assert [len(block.images) for block in Video(path, fps=None)] == [BLOCK_ROWS, BLOCK_ROWS, 22]
    monkeypatch.setattr("extract.faces.video.BLOCK_BYTES", 96 * 128 * 3 * 4)
    assert {len(block.images) for block in Video(path, fps=6)} == {4}


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        ((90, False), lambda image: np.rot90(image)),
        ((-90, False), lambda image: np.rot90(image, -1)),
        ((180, False), lambda image: image[::-1, ::-1]),
        ((0, True), lambda image: image[:, ::-1]),
    ],
)
def test_pictures_are_turned_as_players_turn_them(tmp_path, turn, expected):
    path = write_video(tmp_path / "x.mp4", CONSTANT[:5], turn=turn, options={"crf": "1"})
    picture = next(iter(Video(path, fps=None))).images[3]
    np.testing.assert_allclose(picture.astype(int), expected(clock_picture(120)).astype(int), atol=30)


def test_pixels_become_square(tmp_path):
    rows, _ = rows_of(write_video(tmp_path / "x.mp4", CONSTANT, aspect=Fraction(16, 11)))
    assert [row[2] for row in rows] == [due(CONSTANT, i / 6) for i in range(15)]
    assert next(iter(Video(tmp_path / "x.mp4", fps=6))).images.shape[1:] == (96, 186, 3)


def test_large_pictures_are_reduced_to_a_side(tmp_path):
    path = write_video(tmp_path / "x.mp4", CONSTANT[:3], size=(1080, 2160), options={"preset": "ultrafast"})
    assert next(iter(Video(path, fps=6))).images.shape[1:] == (640, 1280, 3)
    assert next(iter(Video(path, fps=6, max_side=None))).images.shape[1:] == (1080, 2160, 3)
    assert rows_of(path, None)[0][2][2] == 0.08


@pytest.mark.parametrize(
    ("codec", "size", "pixels", "options"),
    [
        ("libx264", (96, 128), "yuv420p10le", {}),
        ("libx264", (97, 129), "yuv444p", {}),
        ("ffv1", (99, 131), "yuv420p", {}),
        ("libx264", (96, 128), "yuv420p", {"x264-params": "tff=1"}),
        ("ffv1", (96, 128), "bgra", {}),
        ("mjpeg", (96, 128), "yuvj420p", {}),
        ("rawvideo", (96, 128), "gray", {}),
    ],
)
def test_all_sorts_of_pictures_are_read(tmp_path, codec, size, pixels, options):
    path = write_video(tmp_path / "x.mkv", CONSTANT, codec=codec, size=size, pixels=pixels, options=options)
    assert [row[2] for row in rows_of(path, None)[0]] == CONSTANT
    assert next(iter(Video(path, fps=6))).images.shape[1:] == (*size, 3)


def test_the_resolution_may_change_on_the_way(tmp_path):
    parts = [write_video(tmp_path / f"{i}.ts", CONSTANT, size=size) for i, size in enumerate([(96, 128), (48, 64)])]
    (tmp_path / "x.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    rows, _ = rows_of(tmp_path / "x.ts", None)
    assert [row[2] for row in rows] == CONSTANT * 2
    assert [row[0] for row in rows] == pytest.approx([i / 25 for i in range(120)], abs=0.01)


def test_one_picture_is_one_row(tmp_path):
    assert [row[2] for row in rows_of(write_video(tmp_path / "x.mp4", [0.0]))[0]] == [0.0]
    assert [row[2] for row in rows_of(tmp_path / "x.mp4", None)[0]] == [0.0]


def test_an_animated_picture_is_a_video(tmp_path):
    path = write_video(tmp_path / "x.gif", [0.0, 0.5, 1.0], codec="gif", pixels="rgb8")
    assert [row[2] for row in rows_of(path, 2.0)[0]][:3] == [0.0, 0.5, 1.0]


def test_animations_are_videos_or_are_refused(tmp_path):
    frames = [Image.fromarray(clock_picture(t)) for t in (0, 500, 1000)]
    for suffix in (".png", ".webp"):
        frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], duration=500)
    assert [row[2] for row in rows_of(tmp_path / "x.png", 2.0)[0]] == [0.0, 0.5, 1.0]
    with pytest.raises(MediaError, match="without a picture that can be decoded"):  # FFmpeg reads no animated WebP
        rows_of(tmp_path / "x.webp")


def test_files_without_a_video_are_refused_in_a_sentence(tmp_path, media):
    media.write(tmp_path / "sound.wav", media.tones(0.2))
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "broken.mp4").write_bytes(np.random.default_rng(0).bytes(2000))
    for name, reason in [
        ("sound.wav", "has no video track"),
        ("empty.mp4", "is empty (0 bytes)"),
        ("broken.mp4", "is not a media file that FFmpeg can read"),
        ("missing.mp4", "does not exist"),
    ]:
        with pytest.raises(MediaError, match="^" + re.escape(reason)):
            rows_of(tmp_path / name)


def test_cover_art_is_no_video(tmp_path, media):
    sound, picture = tmp_path / "sound.m4a", tmp_path / "cover.mp4"
    media.write(sound, media.tones(0.5))
    with av.open(str(sound)) as source, av.open(str(picture), "w") as out:
        stream = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 128, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(clock_picture(0)).reformat(format="yuvj420p")))
        out.mux(cover.encode())
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    with pytest.raises(MediaError, match="has no video track"):
        rows_of(picture)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_truncated_video_is_refused_or_used_as_far_as_it_goes(tmp_path, suffix):
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = write_video(tmp_path / f"x{suffix}", [i / 25 for i in range(100)], muxer=options, options={"g": "5"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(MediaError, match=r"truncated|damaged"):
        rows_of(path)
    rows, video = rows_of(path, options=DecodeOptions(allow_truncated=True))
    assert "truncated" in video.cut_off
    assert 6 <= len(rows) < 20
    assert all(row[2] == due([i / 25 for i in range(100)], row[0]) for row in rows[:-1])
    assert len(rows_of(path, max_seconds=0.5)[0]) == 3, "what lies behind the limit does not matter"
