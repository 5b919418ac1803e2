"""Videos become rows of a cache: one face per clip, valid where it was found, killed and resumed without a trace."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from warm_python import python

import emi
import extract.plan
from cache.errors import StaleCacheError
from emi.demo.drawing import Identity, Pose, draw
from extract.backbones import identify
from extract.errors import BackboneError, ExtractSettingsError, MediaError
from extract.faces import package
from extract.faces.align import crops, onto_template
from extract.faces.modality import Face
from extract.faces.mtcnn import Detector
from extract.faces.options import FaceOptions
from extract.faces.reading import _cut_out
from extract.faces.tracking import track_faces
from extract.faces.video import Video
from extract.modality.decoding import Decoder
from extract.modality.registry import MODALITIES
from extract.settings import DEFAULT, DecodeOptions, ExtractSettings
from extract.sources import Source
from extract.threads import one_thread_per_operation

RATE = 10
TOLERANCE = 2e-4
"""Of features in batches of other sizes, whose convolutions are summed in another order."""
WALL = np.full((160, 200, 3), 90, np.uint8)


def person(seed, number, x=0.5):
    pose = Pose(smile=np.sin(number / 3 + seed), jaw=abs(np.sin(number / 2)), centre=(x + 0.002 * number, 0.47))
    return Identity.of(seed), pose


def film(seed, pattern):
    """A picture per letter: with a face where it is x."""
    return [draw([person(seed, i)], 160, 200) if letter == "x" else WALL for i, letter in enumerate(pattern)]


FILMS = {
    "always": "x" * 20,
    "between": "xxxxxx........xxxxxx",
    "late": "........xxxxxx",
    "never": "." * 15,
    "once": "x",
    "short": "xxxx",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encode):
    """Six clips at ten pictures per second, one of them without a face."""
    folder = tmp_path_factory.mktemp("films")
    for seed, (name, pattern) in enumerate(FILMS.items()):
        encode(folder / f"{name}.mp4", film(seed, pattern), RATE)
    return folder


def extracted(media, cache, **settings):
    summary = emi.extract(media, cache, backbone="mtcnn", dtype="float32", device="cpu", **settings)
    return summary, emi.open_cache(cache)


def read(path, max_seconds=None, **faces):
    return MODALITIES["face"].reader()(Source("x", path), max_seconds, DecodeOptions(faces=FaceOptions(**faces)))


@pytest.fixture(scope="module")
def cached(folder, tmp_path_factory):
    return extracted(folder, tmp_path_factory.mktemp("cached") / "f.zarr", fps=5)


def test_rows_are_valid_where_the_face_is_seen(cached):
    summary, store = cached
    assert (summary.written, summary.failures) == (6, [])
    assert (store.header.hop_seconds, store.header.modality, store.header.dim) == (0.2, "face", 266)
    for name, pattern in FILMS.items():
        clip = store[name]
        expected = [letter == "x" for letter in pattern[::2]] if "x" in pattern else [False]
        assert clip.valid.tolist() == expected, name
        assert clip.seconds == pytest.approx(len(pattern) / RATE)
        assert clip.times is None
        assert not clip.frames[~clip.valid].any()
        assert clip.frames[clip.valid].any(axis=1).all()


def test_the_summary_names_clips_without_a_face(cached):
    shares = {note.id: note.missing for note in cached[0].missing}
    assert shares == {"between": pytest.approx(0.4), "late": pytest.approx(4 / 7), "never": 1.0}


def test_features_are_those_of_the_crops_of_the_chosen_face(cached, folder):
    detector = Detector()
    pictures = next(iter(Video(folder / "between.mp4", fps=5)))
    with one_thread_per_operation():  # else landmarks differ in their last bits, and a crop in a pixel
        found = track_faces([pictures], detector)
    images = crops(pictures.images[found.valid], onto_template(found.landmarks[found.valid]))
    clip = cached[1]["between"]
    np.testing.assert_allclose(clip.frames[clip.valid], detector.embed(images), rtol=0, atol=TOLERANCE)


def test_each_clip_alone_gives_the_features_of_the_batch(cached, folder, tmp_path):
    for name in FILMS:
        _, alone = extracted(folder / f"{name}.mp4", tmp_path / f"{name}.zarr", fps=5)
        np.testing.assert_allclose(alone[name].frames, cached[1][name].frames, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("container", ["n.zarr", "n.h5"])
def test_native_rows_have_the_times_of_the_pictures(folder, tmp_path, container):
    _, store = extracted(folder, tmp_path / container, fps=None, max_seconds=1.0)
    assert store.header.hop_seconds is None
    assert store.header.fingerprint["fps"] == "native"
    for name, pattern in FILMS.items():
        clip, seen = store[name], pattern[:RATE]
        if "x" not in seen:
            np.testing.assert_allclose(clip.times, [[0, len(seen) / RATE]], atol=1e-6)
            assert clip.valid.tolist() == [False]
            continue
        starts = np.arange(len(seen)) / RATE
        np.testing.assert_allclose(clip.times, np.stack([starts, starts + 1 / RATE], 1), atol=1e-6)
        assert clip.valid.tolist() == [letter == "x" for letter in seen]
        assert clip.seconds == pytest.approx(len(pattern) / RATE)


def test_the_cut_bounds_the_rows(folder):
    assert len(read(folder / "always.mp4", 0.9, fps=5).valid) == 5
    assert len(read(folder / "always.mp4", 1.0, fps=5).valid) == 5
    assert len(read(folder / "always.mp4", fps=5).valid) == 10


def test_the_length_of_a_clip_is_known_from_its_header_alone(folder, tmp_path):
    stated = [MODALITIES["face"].stated_seconds(Source("x", p), DEFAULT) for p in (folder / "always.mp4", tmp_path)]
    assert stated == [pytest.approx(2.0, abs=0.11), None]


def test_the_face_that_was_asked_for_is_read(tmp_path, encode):
    pictures = [draw([person(1, i, 0.25), person(2, i, 0.72)], 200, 320) for i in range(5)]
    path = encode(tmp_path / "two.mp4", pictures, RATE)
    left, right, region = (read(path, fps=5, face=face) for face in ("left", "right", "0.5,0,1,1"))
    assert left.others == right.others == 1
    assert left.boxes[0, 2] < 160 < right.boxes[0, 0]
    np.testing.assert_array_equal(region.images, right.images)


def test_a_process_reads_the_same_crops(folder):
    options = DecodeOptions(faces=FaceOptions(fps=5))
    here = MODALITIES["face"].reader()(Source("x", folder / "between.mp4"), None, options)
    decoder = Decoder("face")
    try:
        there = decoder.read(Source("x", folder / "between.mp4"), None, options)
        with pytest.raises(MediaError, match="does not exist"):
            decoder.read(Source("y", folder / "gone.mp4"), None, options)
    finally:
        decoder.close()
    for name in ("images", "valid", "boxes", "landmarks", "scores"):
        np.testing.assert_array_equal(getattr(there, name), getattr(here, name))


def test_media_without_pictures_are_listed(folder, tmp_path, media):
    root = tmp_path / "media"
    root.mkdir()
    media.write(root / "sound.wav", media.speech(0.5))
    (root / "empty.mp4").touch()
    (root / "short.mp4").write_bytes((folder / "short.mp4").read_bytes())
    summary, store = extracted(root, tmp_path / "f.zarr")
    reasons = {failure.id: failure.reason for failure in summary.failures}
    assert reasons["sound"] == "has no video track"
    assert "is empty" in reasons["empty"]
    assert "has no video track" in summary.failures_file.read_text()
    assert store.ids == ["short"]


def test_other_settings_of_faces_are_refused_and_named(cached, folder):
    with pytest.raises(StaleCacheError, match=r"fps \(stored 5.0, wanted 6.0\)"):
        extracted(folder, cached[0].cache)
    with pytest.raises(StaleCacheError, match=r"face \(stored longest, wanted left\)"):
        extracted(folder, cached[0].cache, fps=5, face="left")


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"fps": 0}, "--fps: rows per second above zero, or native"),
        ({"face": "middle"}, "--face takes longest"),
        ({"min_face": 5}, "--min-face: at least 12"),
        ({"detect_every": 0}, "--detect-every: 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(setting, sentence):
    with pytest.raises(ExtractSettingsError, match=sentence):
        ExtractSettings(**setting)


def test_settings_of_faces_are_not_in_the_fingerprint_of_sound():
    header = extract.plan.make_header(identify("silero"), ExtractSettings(fps=3, face="left"), "fp32")
    assert header == extract.plan.make_header(identify("silero"), ExtractSettings(), "fp32")


def test_without_the_weights_one_sentence_says_what_to_install(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackboneError, match=r"pip install 'emi-mimicry\[faces\]'"):
        extracted(folder, tmp_path / "f.zarr")


def test_threads_that_start_after_a_video_was_read_find_as_many_of_torchs_as_before(folder):
    with ThreadPoolExecutor() as pool:
        before = pool.submit(torch.get_num_threads).result()
    with ThreadPoolExecutor() as pool:
        pool.submit(read, folder / "short.mp4").result()
    with ThreadPoolExecutor() as pool:
        assert pool.submit(torch.get_num_threads).result() == before


@pytest.mark.parametrize(("fps", "max_seconds"), [(5, None), (None, None), (5, 1.3)])
def test_long_videos_are_computed_in_blocks(folder, tmp_path, monkeypatch, fps, max_seconds):
    monkeypatch.setattr("extract.faces.video.BLOCK_ROWS", 4)
    _, whole = extracted(folder, tmp_path / "whole.zarr", fps=fps, max_seconds=max_seconds)
    monkeypatch.setattr(Face, "longest_rows", 4)
    item = read(folder / "always.mp4", max_seconds, fps=fps)
    assert item.long
    assert len(item.images) == 0
    summary, blocks = extracted(folder, tmp_path / "blocks.zarr", fps=fps, max_seconds=max_seconds)
    assert (summary.written, summary.failures) == (6, [])
    for name in FILMS:
        a, b = whole[name], blocks[name]
        np.testing.assert_allclose(b.frames, a.frames, rtol=0, atol=TOLERANCE)
        np.testing.assert_array_equal(b.valid, a.valid)
        assert (b.times is None) == (fps is not None)
        assert b.times is None or b.times.tolist() == a.times.tolist()
        assert b.seconds == a.seconds


def test_a_video_that_changes_between_the_passes_fails(folder):
    video = Video(folder / "short.mp4", fps=5)
    boxes, landmarks = np.zeros((3, 4), np.float32), np.zeros((3, 5, 2), np.float32)
    with pytest.raises(MediaError, match="changed while it was being read"):
        list(_cut_out(video, np.zeros(3, bool), boxes, landmarks, "aligned"))


CHILD = """
import os, signal, sys
import cache.writer, extract.plan
from extract import run
from extract.settings import ExtractSettings

media, cache_path, stop = sys.argv[1:]
cache.writer.CacheWriter.__init__.__kwdefaults__["segment_bytes"] = 1_000  # a clip
extract.plan.WINDOW_CLIPS = 2

def progress(done, total, seconds):
    if done == int(stop):
        os.kill(os.getpid(), signal.SIGKILL)

settings = ExtractSettings(backbone="mtcnn", dtype="float32", device="cpu", fps=5)
run.extract(media, cache_path, settings, on_progress=progress)
"""


@pytest.mark.parametrize("container", ["f.zarr", "f.h5"])
def test_a_killed_extraction_ends_as_an_uninterrupted_one(folder, tmp_path, monkeypatch, container):
    monkeypatch.setattr(extract.plan, "WINDOW_CLIPS", 2)
    _, whole = extracted(folder, tmp_path / f"whole_{container}", fps=5)
    command = [python(), "-c", CHILD, str(folder), str(tmp_path / container), "5"]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with emi.open_cache(tmp_path / container) as store:
        committed = len(store)
    assert 0 < committed < 6
    summary, store = extracted(folder, tmp_path / container, fps=5)
    assert (summary.present, summary.written) == (committed, 6 - committed)
    for name in FILMS:
        assert store[name].checksum() == whole[name].checksum()
