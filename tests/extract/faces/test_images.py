"""Folders of images, cut out by other programs, are clips of face backbones: a row per number."""

import numpy as np
import pytest
from PIL import Image

import emi
from emi.demo.drawing import Identity, Pose, draw
from extract.errors import MediaError, MediaListError
from extract.faces.images import LARGEST, image_names, read_image, read_images, rows_of, scaled
from extract.faces.mtcnn import Detector
from extract.modality.registry import MODALITIES
from extract.settings import DecodeOptions
from extract.sources import Source, find_media


def face(number, side=112):
    return draw([(Identity.of(number), Pose(size=0.8, jaw=0.1 * number))], side, side)


def write(folder, **images):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def read_clip(folder, max_seconds=None):
    return MODALITIES["face"].reader()(Source("x", folder), max_seconds, DecodeOptions())


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["10.jpg", "0.jpg", "2.jpg"], ["0.jpg", "", "2.jpg", *[""] * 7, "10.jpg"]),
        (["00003.jpg", "00001.jpg"], ["00001.jpg", "", "00003.jpg"]),
        (["3.jpg", "4.jpg"], ["", "", "3.jpg", "4.jpg"]),
        (["frame_2.png", "frame_10.png", "frame_1.png"], ["frame_1.png", "frame_2.png", *[""] * 7, "frame_10.png"]),
        (["a10.png", "a9.png", "b1.png"], ["a9.png", "a10.png", "b1.png"]),
        (["left.png", "centre.png"], ["centre.png", "left.png"]),
    ],
)
def test_numbers_are_rows_and_other_names_are_sorted(names, rows):
    assert rows_of(names) == rows


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "is a folder without images"),
        (["1.jpg", "01.jpg"], "has two images of number 1"),
        (["0.jpg", "1000.jpg", "2000.jpg"], "has 3 images with numbers up to 2000; number them by rows"),
    ],
)
def test_names_without_an_order_are_refused(names, sentence):
    with pytest.raises(MediaError, match=sentence):
        rows_of(names)


def test_other_sizes_and_modes_are_read(tmp_path):
    picture = face(1)
    Image.fromarray(picture).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(picture).convert("L").save(tmp_path / "grey.png")
    Image.fromarray(face(1, 224)).save(tmp_path / "large.png")
    Image.fromarray(np.full((300, 1200, 3), 7, np.uint8)).save(tmp_path / "huge.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), picture)
    assert read_image(tmp_path / "grey.png").shape == (112, 112, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "large.png"), face(1, 224))
    assert np.abs(scaled(read_image(tmp_path / "large.png"), 112).astype(int) - picture).mean() < 4
    assert read_image(tmp_path / "huge.png").shape == (LARGEST // 4, LARGEST, 3)


def test_missing_and_broken_images_are_rows_without_a_face(tmp_path):
    folder = write(tmp_path / "x", **{"1": face(1), "2": face(2), "5": face(5)})
    (folder / "4.jpg").write_bytes(b"\xff\xd8 no picture")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "._1.png").write_bytes(b"x")
    (images, valid, problems), *_ = read_images(folder, image_names(folder, 6)[0])
    assert valid.tolist() == [True, True, False, False, True]
    for row, number in ((0, 1), (1, 2), (4, 5)):
        np.testing.assert_array_equal(images[row], face(number))
    assert images[2].size == images[3].size == 0
    assert [problem.partition(" (")[0] for problem in problems] == ["4.jpg cannot be read"]
    whole, cut = (read_clip(folder, max_seconds) for max_seconds in (None, 0.3))
    assert whole.seconds == cut.seconds == pytest.approx(5 / 6)
    assert whole.remark.startswith("has 1 image that cannot be read, first 4.jpg cannot be read (")
    assert (cut.valid.tolist(), cut.remark) == ([True, True], "")


def test_folders_of_images_are_clips_where_faces_are_taken(tmp_path):
    write(tmp_path / "a" / "v1.5", **{"0": face(0)})
    write(tmp_path / "b", **{"0": face(0)})
    (tmp_path / "c.mp4").touch()
    Image.fromarray(face(0)).save(tmp_path / "sheet.png")
    (tmp_path / "list.csv").write_text("Filename\nb\nc\ngone\n")
    assert find_media(tmp_path, images=True) == [
        Source("a/v1.5", tmp_path / "a/v1.5"),
        Source("b", tmp_path / "b"),
        Source("c", tmp_path / "c.mp4"),
    ]
    assert [source.id for source in find_media(tmp_path)] == ["c"]
    assert [source.id for source in find_media(tmp_path / "list.csv", images=True)] == ["b", "c", "gone"]
    with pytest.raises(MediaListError, match="holds no media"):
        find_media(tmp_path / "a")


def test_features_of_images_are_those_of_the_crops(tmp_path):
    clips = tmp_path / "clips"
    write(clips / "a", **{str(i): face(i) for i in (0, 1, 3)})
    write(clips / "b", **{f"{i:05d}": face(i, 150) for i in (1, 2)})
    broken = write(clips / "broken")
    (broken / "1.jpg").write_bytes(b"no picture")
    summary = emi.extract(clips, tmp_path / "f.zarr", backbone="mtcnn", dtype="float32")
    store = emi.open_cache(tmp_path / "f.zarr")
    assert sorted(store.ids) == ["a", "b"]
    assert [failure.id for failure in summary.failures] == ["broken"]
    assert summary.failures[0].reason.startswith("has no image that can be read: 1.jpg cannot be read")
    assert store["a"].valid.tolist() == [True, True, False, True]
    expected = Detector().embed(np.stack([face(i) for i in (0, 1, 3)]))
    np.testing.assert_allclose(store["a"].frames[store["a"].valid], expected, rtol=1e-5, atol=1e-5)
    assert store["b"].valid.tolist() == [True, True]
    summary = emi.extract(clips, tmp_path / "n.zarr", backbone="mtcnn", fps=None)
    assert "give their rate, as --fps 25" in summary.failures[0].reason
    assert summary.written == 0


def test_a_folder_whose_images_change_is_noticed(tmp_path):
    clip = write(tmp_path / "clips" / "a", **{"0": face(0), "1": face(1)})
    settings = {"backbone": "mtcnn", "dtype": "float32"}
    emi.extract(tmp_path / "clips", tmp_path / "f.zarr", **settings)
    assert emi.extract(tmp_path / "clips", tmp_path / "f.zarr", **settings).changed == []
    write(clip, **{"1": face(7)})
    assert emi.extract(tmp_path / "clips", tmp_path / "f.zarr", **settings).changed == ["a"]


@pytest.mark.parametrize("max_seconds", [None, 100.0])
def test_many_images_are_computed_in_blocks(tmp_path, monkeypatch, max_seconds):
    write(tmp_path / "clips" / "a", **{str(i): face(i) for i in (0, 1, 2, 5, 6, 8)})
    settings = {"backbone": "mtcnn", "dtype": "float32", "max_seconds": max_seconds}
    emi.extract(tmp_path / "clips", tmp_path / "whole.zarr", **settings)
    monkeypatch.setattr(type(MODALITIES["face"]), "longest_rows", 4)
    monkeypatch.setattr("extract.faces.images.BLOCK_ROWS", 2)
    item = read_clip(tmp_path / "clips" / "a", max_seconds)
    assert (item.long, len(item.images), len(item.valid)) == (True, 0, 9)
    emi.extract(tmp_path / "clips", tmp_path / "blocks.zarr", **settings)
    a, b = (emi.open_cache(tmp_path / f"{name}.zarr")["a"] for name in ("whole", "blocks"))
    assert a.valid.tolist() == b.valid.tolist() == [True, True, True, False, False, True, True, False, True]
    np.testing.assert_allclose(b.frames, a.frames, rtol=1e-5, atol=1e-5)
