"""Crops on the disk are those that extraction cuts out; they are made once, and again where media have changed."""

import os
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from emi.demo.drawing import Identity, Pose, draw
from emi.finetuning.crops import LAYOUT, _CropFile, decode_crops, open_crops, request_of
from emi.finetuning.modalities import Faces
from emi.finetuning.settings import FinetuneSettings
from extract.faces.modality import Face
from extract.faces.options import FaceOptions
from extract.faces.reading import FaceReader, nothing_found
from extract.settings import DecodeOptions
from extract.sources import Source, find_media
from train_head.data.streams import Stream

SLOW = DecodeOptions(faces=FaceOptions(fps=4.0))


def write_video(path, seed, faces=True):
    """Write a second of a talking head at 4 pictures per second."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=4, options={"crf": "12"})
        video.height, video.width, video.pix_fmt = 160, 200, "yuv420p"
        for i in range(4):
            people = [(Identity.of(seed), Pose(smile=i / 4))] if faces else []
            frame = av.VideoFrame.from_ndarray(draw(people, 160, 200))
            frame.pts, frame.time_base = i, Fraction(1, 4)
            out.mux(video.encode(frame))
        out.mux(video.encode())


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two videos, one without a face, and two folders of images: of several sizes, and of what is no image."""
    root = tmp_path_factory.mktemp("media")
    write_video(root / "a.mp4", 1)
    write_video(root / "b.mp4", 2, faces=False)
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for i, size in enumerate([(40, 30), (112, 112), (50, 50)]):
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(root / "images" / f"{2 * i}.png")
    (root / "broken").mkdir()
    (root / "broken" / "0.png").write_bytes(b"no image")
    return root


def requested(media, **options):
    return request_of(find_media(media, images=True), 12.0, options.pop("options", SLOW))


def as_read(request, crops, clip):
    """The crops and marks of a clip as extraction reads it."""
    (source,) = (source for source in request.sources if source.id == clip)
    read = FaceReader(1800)(source.path, request.max_seconds, request.options)
    start = crops.starts[clip]
    assert crops.lengths[clip] == len(read.valid)
    stream = crops.stream("", [clip], 0.25)
    np.testing.assert_array_equal(stream.valid[start : start + len(read.valid)].numpy(), read.valid)
    for row in np.flatnonzero(read.valid):
        np.testing.assert_array_equal(crops.image(start + row), read.images[row])
    return read


def test_every_crop_is_what_extraction_reads(media, tmp_path):
    request, progress = requested(media), []
    assert open_crops(tmp_path, request) is None
    decode_crops(tmp_path, request, lambda *how: progress.append(how))
    assert [done for done, *_ in progress] == [1, 2, 3, 4]
    crops = open_crops(tmp_path, request)
    assert as_read(request, crops, "a").valid.all()
    assert not as_read(request, crops, "b").valid.any()
    assert as_read(request, crops, "images").valid.tolist() == [True, False, True, False, True]
    (failure,) = crops.failures
    assert failure.id == "broken"
    assert "no image that can be read" in failure.reason
    assert "broken" in (tmp_path / "failures.csv").read_text()


def test_a_clip_too_long_to_hold_is_cut_out_in_blocks(media, tmp_path, monkeypatch):
    request = requested(media)
    decode_crops(tmp_path / "whole", request)
    monkeypatch.setattr(Face, "longest_rows", 1)
    monkeypatch.setattr(LAYOUT.modality, "reader", lambda: reads(1))
    decode_crops(tmp_path / "blocks", request)
    whole, blocks = (open_crops(tmp_path / name, request) for name in ("whole", "blocks"))
    assert dict(whole.checksums) == dict(blocks.checksums)
    np.testing.assert_array_equal(whole.rows, blocks.rows)
    np.testing.assert_array_equal(whole.pixels, blocks.pixels)


def reads(longest_rows):
    reader = FaceReader(longest_rows)
    return lambda source, max_seconds, options: reader(source.path, max_seconds, options, source.video)


def test_a_changed_image_or_other_options_are_cut_out_again(media, tmp_path):
    request = requested(media)
    decode_crops(tmp_path, request)
    assert open_crops(tmp_path, request) is not None
    assert open_crops(tmp_path, requested(media, options=DecodeOptions())) is None
    image = media / "images" / "0.png"
    before = image.stat().st_mtime_ns
    os.utime(image, ns=(before, before + 10**9))
    assert open_crops(tmp_path, request) is None
    decode_crops(tmp_path, request)
    assert len(list(tmp_path.glob("emi-crops-*.bin"))) == len(list(tmp_path.glob("emi-crops-*.rows"))) == 1


def test_rows_without_a_face_are_left_out_of_what_a_backbone_gets(media, tmp_path):
    faces = Faces(FinetuneSettings(fps=4.0))
    sources = [source for source in find_media(media, images=True) if source.id != "broken"]
    faces.decode(tmp_path, sources)
    clips = faces.open(tmp_path, sources)
    stream: Stream = clips.stream("face", ["images", "b", "a"])
    marked, nothing, _ = clips.inputs(stream, [0, 1, 2], None)
    assert marked.computed.tolist() == [True, False, True, False, True]
    assert [image.shape for image in marked.faces] == [(40, 30, 3), (112, 112, 3), (50, 50, 3)]
    assert nothing.computed.tolist() == [False]
    assert not nothing.faces
    (found,) = clips.inputs(stream.only_valid(), [0], None)
    assert found.computed.all()
    assert [image.shape for image in found.faces] == [image.shape for image in marked.faces]
    assert "broken" not in clips


def test_what_failed_for_a_passing_reason_is_found_out(media, tmp_path):
    broken = tmp_path / "media" / "clip"
    broken.mkdir(parents=True)
    (broken / "0.png").write_bytes(b"no image")
    faces, sources = Faces(FinetuneSettings()), [Source("clip", broken)]
    faces.decode(tmp_path / "crops", sources)
    failures = faces.open(tmp_path / "crops", sources).failures
    assert not faces.mended(sources, failures)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(broken / "0.png")
    assert faces.mended(sources, failures)


def test_the_hash_of_crops_says_which_rows_they_are_and_when(media, tmp_path):
    shutil.copytree(media / "images", tmp_path / "media" / "images")
    request, hashes = requested(tmp_path / "media"), []
    for name in ("2.png", "1.png", "3.png"):
        (found,) = (tmp_path / "media" / "images").glob("[1-3].png")
        found.rename(found.with_name(name))
        decode_crops(tmp_path / "crops", request)
        crops = open_crops(tmp_path / "crops", request)
        assert crops.lengths["images"] == 5
        hashes.append(crops.sha256(["images"]))
    assert len(set(hashes)) == 3
    for end in (1.0, 2.0):
        with _CropFile(tmp_path / "x.tmp", SLOW) as file:
            clip = nothing_found(1.0, "", FaceOptions(fps=None), end)
            hashes.append(file.append(clip, Source("a", tmp_path))["crc32c"])
    assert hashes[-1] != hashes[-2]


def test_images_that_change_while_clips_are_cut_out_are_cut_out_again(media, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(media / "images", tmp_path / "media" / name)
    request, image = requested(tmp_path / "media"), tmp_path / "media" / "b" / "0.png"
    after = image.stat().st_mtime_ns + 10**9
    decode_crops(tmp_path / "crops", request, lambda *_: os.utime(image, ns=(after, after)))
    assert open_crops(tmp_path / "crops", request) is None
    decode_crops(tmp_path / "crops", request)
    assert open_crops(tmp_path / "crops", request) is not None
