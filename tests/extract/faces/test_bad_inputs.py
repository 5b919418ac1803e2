"""Media that hold no face, or are no proper pictures: one sentence each, and the other clips are extracted."""

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import emi
from emi.cli import app
from emi.demo.drawing import draw
from tests.extract.faces.test_images import face, write


def extracted(root, **settings):
    settings = {"backbone": "mtcnn", "dtype": "float32"} | settings
    summary = emi.extract(root, root.with_name("f.zarr"), **settings)
    return summary, emi.open_cache(root.with_name("f.zarr"))


def reason(root):
    """Why the only clip cannot be extracted."""
    summary, store = extracted(root)
    assert (summary.written, len(store)) == (0, 0)
    (failure,) = summary.failures
    assert failure.reason in summary.failures_file.read_text()
    return failure.reason


@pytest.fixture
def root(tmp_path):
    (tmp_path / "media").mkdir()
    return tmp_path / "media"


def animate(path, pictures=3):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(face(i)) for i in range(pictures))
    first.save(path, save_all=True, append_images=others, duration=100)
    return path


def test_sound_alone(root, media):
    media.write(root / "a.wav", media.speech(0.5))
    assert reason(root) == "has no video track"


def test_sound_with_cover_art(root, tmp_path, media):
    media.write(tmp_path / "a.wav", media.speech(0.5))
    Image.fromarray(face(1)).save(tmp_path / "cover.png")
    with av.open(str(tmp_path / "a.wav")) as sound, av.open(str(root / "a.mka"), "w", "mp4") as out:
        track = out.add_stream("aac", rate=16_000)
        cover = out.add_stream("png", rate=1)
        cover.width = cover.height = 112
        cover.pix_fmt = "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for frame in sound.decode(audio=0):
            out.mux(track.encode(frame))
        out.mux(track.encode())
        out.mux(cover.encode(av.VideoFrame.from_ndarray(face(1))))
        out.mux(cover.encode())
    assert reason(root) == "has no video track (its picture is cover art)"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_of_no_bytes(root, name):
    (root / name).touch()
    assert reason(root) == "is empty (0 bytes)"


@pytest.mark.parametrize("fps", [6.0, None])
def test_no_face_in_any_frame(root, encode, fps):
    encode(root / "a.mp4", [draw([], 120, 160)] * 8)
    summary, store = extracted(root, fps=fps)
    assert store["a"].valid.tolist() == [False]
    assert [(note.id, note.missing) for note in summary.missing] == [("a", 1.0)]
    again = ["extract", root, "--backbone", "mtcnn", "--cache", root.with_name("g.zarr")]
    done = CliRunner().invoke(app, list(map(str, again)))
    assert "nothing was found (as no face) in any row of 1 clip: a" in done.output


@pytest.mark.parametrize("fps", [6.0, None])
def test_one_frame(root, encode, fps):
    encode(root / "a.mp4", [face(1, 240)])
    _, store = extracted(root, fps=fps)
    assert store["a"].valid.tolist() == [True]


def test_images_of_unlike_sizes(root):
    write(root / "a", **{"1": face(1), "2": face(1, 224), "3": face(1, 150)[:, :140]})
    summary, store = extracted(root)
    assert (store["a"].valid.tolist(), summary.remarks) == ([True] * 3, [])
    a, b, _ = store["a"].frames
    assert np.corrcoef(a, b)[0, 1] > 0.95


def test_a_broken_jpeg_among_others(root):
    write(root / "a", **{"1": face(1), "3": face(3)})
    Image.fromarray(face(2)).save(root / "a" / "2.jpg")
    (root / "a" / "2.jpg").write_bytes((root / "a" / "2.jpg").read_bytes()[:1500])
    summary, store = extracted(root)
    assert store["a"].valid.tolist() == [True, False, True]
    (note,) = summary.remarks
    assert note.remark.startswith(
        "has 1 image that cannot be read, first 2.jpg cannot be read (image file is truncated"
    )


def test_a_broken_jpeg_alone_and_an_image_of_no_bytes(root):
    (root / "a").mkdir()
    (root / "a" / "1.jpg").touch()
    (root / "a" / "2.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    assert reason(root) == "has no image that can be read: 1.jpg cannot be read (cannot identify image file '1.jpg')"


def test_png_with_alpha_and_with_a_palette(root):
    alpha = Image.fromarray(np.dstack([face(1), np.full((112, 112), 90, np.uint8)]))
    (root / "a").mkdir()
    alpha.save(root / "a" / "1.png")
    Image.fromarray(face(1)).save(root / "a" / "2.png")
    Image.fromarray(face(1)).quantize(256).save(root / "a" / "3.png", transparency=0)
    _, store = extracted(root)
    with_alpha, without, palette = store["a"].frames
    np.testing.assert_array_equal(with_alpha, without)
    assert np.corrcoef(palette, without)[0, 1] > 0.95


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_an_animated_picture_as_an_image(root, suffix):
    animate(root / "a" / f"1{suffix}")
    said = f"1{suffix} is an animated picture of 3 frames; save them as single images"
    assert reason(root) == f"has no image that can be read: {said}"


def test_an_animated_picture_as_a_clip(root):
    """A folder leaves it out and says so; a list takes it as what it is, a video."""
    animate(root / "a.gif")
    write(root / "b", **{"1": face(1)})
    done = CliRunner().invoke(
        app, ["extract", str(root), "--backbone", "mtcnn", "--cache", str(root.with_name("g.zarr"))]
    )
    assert "left out: 1 file (.gif 1), by their suffixes no media; a text list takes any file" in done.output
    (root / "list.txt").write_text("a.gif\n")
    summary = emi.extract(root / "list.txt", root.with_name("h.zarr"), backbone="mtcnn", fps=None)
    assert summary.failures == []
    store = emi.open_cache(root.with_name("h.zarr"))
    (clip,) = (store[name] for name in store.ids)
    np.testing.assert_allclose(clip.times[:, 0], [0.0, 0.1, 0.2], atol=1e-3)


def test_the_dry_run_speaks_of_video(root, encode):
    encode(root / "a.mp4", [face(1, 240)] * 25)
    arguments = ["extract", root, "--backbone", "mtcnn", "--cache", root.with_name("f.zarr"), "--dry-run"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert "\nvideo: 0.00028 h after the cut\n" in done.output
    assert " s of video in " in done.output
    assert "audio" not in done.output


def test_an_empty_folder_beside_folders_of_images(root):
    write(root / "a" / "00001", **{"1": face(1)})
    (root / "a" / "empty").mkdir()
    (root / "a" / "empty" / ".hidden").touch()
    (root / "a" / "notes").mkdir()
    (root / "a" / "notes" / "labels.txt").touch()
    (root / "elsewhere").mkdir()
    summary, store = extracted(root)
    assert store.ids == ["a/00001"]
    assert [(failure.id, failure.reason) for failure in summary.failures] == [("a/empty", "is a folder without images")]
    assert "a/empty" in summary.failures_file.read_text()
    command = ["extract", root, "--backbone", "mtcnn", "--cache", root.with_name("f.zarr")]
    assert CliRunner().invoke(app, list(map(str, command))).exit_code == 1
