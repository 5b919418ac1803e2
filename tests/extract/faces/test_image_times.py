"""Folders of images take the times of the frames of the video that they were cut out of."""

import wave

import numpy as np
import pytest

import emi
from extract.errors import ExtractSettingsError, MediaListError
from extract.faces.image_times import at_frames, with_videos
from extract.faces.video import Video
from extract.settings import ExtractSettings
from extract.sources import Source
from tests.extract.faces.test_images import face, write
from tests.extract.faces.videos import write_video

UNEVEN = np.cumsum([0.0, *[0.04] * 9, *[0.08] * 5, *[0.02] * 5]).round(3).tolist()  # 20 frames
FIRST = [1, 2, 3, 5, 6, 20]


@pytest.fixture
def folder(tmp_path):
    """Two people in a video of uneven rate, one in another, which starts late behind its sound."""
    (tmp_path / "videos" / "batch1").mkdir(parents=True)
    write_video(tmp_path / "videos" / "batch1" / "7-30-640x480.mp4", UNEVEN)
    write_video(tmp_path / "videos" / "8.mp4", UNEVEN[:10], shift=0.5, sound=1.0)
    with wave.open(str(tmp_path / "videos" / "8.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    clips = tmp_path / "cropped_aligned"
    write(clips / "7-30-640x480_left", **{f"{i:05d}": face(i) for i in FIRST})
    write(clips / "7-30-640x480_right", **{f"{i:05d}": face(i) for i in range(4, 15)})
    write(clips / "8", **{f"{i:05d}": face(i) for i in range(1, 13)})  # two more than frames
    return tmp_path


def extracted(folder, cache="f.zarr", **settings):
    clips = folder / "cropped_aligned"
    settings = {"backbone": "mtcnn", "dtype": "float32", "videos": folder / "videos"} | settings
    return emi.extract(clips, folder / cache, **settings), emi.open_cache(folder / cache)


def test_row_i_has_the_time_of_frame_i(folder):
    summary, store = extracted(folder)
    assert (summary.written, summary.failures) == (3, [])
    assert store.header.hop_seconds is None
    assert store.header.fingerprint["fps"] == "native"
    left, right, late = (store[name] for name in ("7-30-640x480_left", "7-30-640x480_right", "8"))
    for clip in (left, right):
        np.testing.assert_allclose(clip.times[:, 0], UNEVEN, atol=1e-3)
        np.testing.assert_allclose(clip.times[:-1, 1], UNEVEN[1:], atol=1e-3)
    assert [i + 1 for i in np.flatnonzero(left.valid)] == FIRST
    assert [i + 1 for i in np.flatnonzero(right.valid)] == list(range(4, 15))
    np.testing.assert_allclose(late.times[:, 0], [0.5 + time for time in UNEVEN[:10]], atol=1e-3)
    assert {note.id: note.remark for note in summary.remarks} == {
        "7-30-640x480_right": "has images up to row 14, and 7-30-640x480.mp4 20 frames: the last 6 have no face",
        "8": "has images up to row 12, and 8.mp4 10 frames: the last 2 were left out",
    }


def test_the_times_are_those_of_the_video_itself(folder):
    _, store = extracted(folder)
    path = folder / "videos" / "batch1" / "7-30-640x480.mp4"
    times, whole = Video(path, fps=None).frame_times()
    assert whole
    np.testing.assert_array_equal(times, np.concatenate([block.times for block in Video(path, fps=None)]))
    np.testing.assert_array_equal(store["7-30-640x480_left"].times, times.astype(np.float32))


def test_the_cut_is_one_of_time(folder):
    _, store = extracted(folder, max_seconds=0.2)
    assert [len(store[name].valid) for name in store.ids] == [
        5,
        5,
    ]  # of the one that is late, no frame is before the cut


def test_numbers_of_images_and_frames_may_differ_by_few():
    assert at_frames(["a", "b"], "v", 2, whole=True) == (["a", "b"], "")
    assert at_frames(["a"] * 103, "v", 100, whole=True)[0] == ["a"] * 100
    assert at_frames(["a"] * 300, "v", 100, whole=False) == (["a"] * 100, "")
    assert at_frames(["a"] * 60, "v", 100, whole=True)[0] == ["a"] * 60 + [""] * 40


@pytest.mark.parametrize("rows", [104, 49])
def test_images_of_another_rate_are_a_failure(rows):
    with pytest.raises(ValueError, match=f"has images up to row {rows}, and v 100 frames, so they are not its frames"):
        at_frames(["a"] * rows, "v", 100, whole=True)


def test_crops_of_another_video_are_a_failure_that_says_what_to_do(folder):
    (folder / "videos" / "batch1" / "7-30-640x480.mp4").unlink()
    write_video(folder / "videos" / "batch1" / "7-30-640x480.mp4", UNEVEN[:5])
    summary, store = extracted(folder)
    assert list(store.ids) == ["8"]
    reasons = {failure.id: failure.reason for failure in summary.failures}
    assert reasons == {
        f"7-30-640x480_{side}": f"has images up to row {rows}, and 7-30-640x480.mp4 5 frames, so they are not its "
        "frames; name the folder of their own videos with --videos, or give the rate of the images with --fps"
        for side, rows in (("left", 20), ("right", 14))
    }


def test_a_clip_without_its_video_is_a_failure(folder):
    (folder / "videos" / "8.mp4").unlink()
    write(folder / "cropped_aligned" / "9_left", **{"1": face(1)})
    (folder / "videos" / "copy").mkdir()
    for name in ("7-30-640x480.mp4", "7-30-640x480.mkv"):
        write_video(folder / "videos" / "copy" / name, UNEVEN)
    summary, _ = extracted(folder)
    reasons = {failure.id: failure.reason for failure in summary.failures}
    assert reasons["8"].endswith("8.wav, that has no video track")
    assert reasons["9_left"] == f"has no video called 9 in {folder / 'videos'}"
    assert reasons["7-30-640x480_left"].startswith(f"has several videos in {folder / 'videos'}: ")
    with pytest.raises(MediaListError, match="is not a folder; name the one with the videos"):
        with_videos([Source("x", folder)], folder / "gone")


def test_a_rate_and_videos_do_not_go_together(folder):
    assert ExtractSettings(videos=folder).fps is None
    with pytest.raises(ExtractSettingsError, match="and --fps 25 a rate; leave one of them out"):
        ExtractSettings(videos=folder, fps=25)
    summary, _ = extracted(folder, fps=None, videos=None)
    assert summary.failures[0].reason.endswith(
        "give their rate, as --fps 25, or the folder of their videos with --videos"
    )
