"""The table beside crops says which rows there are: older ones, those of other programs, and those that are wrong."""

import csv

import numpy as np
import pytest

from extract.errors import MediaError
from extract.faces.crop_table import COLUMNS, LATER, is_crop_table, read_crop_table
from extract.faces.images import image_names
from extract.faces.options import FaceOptions
from extract.modality.registry import MODALITIES
from extract.settings import DecodeOptions
from extract.sources import Source, find_media
from tests.extract.faces.test_images import face, write

AGAIN = "remove faces.csv to have `emi faces` write the crops again, or to take the images by their names"


def tabulate(folder, valid, columns=COLUMNS, step=0.2, times=None):
    """Write a table of rows without places."""
    folder.mkdir(parents=True, exist_ok=True)
    times = np.arange(len(valid)) * step if times is None else times
    with (folder / "faces.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for i, there in enumerate(valid):
            row = {"id": "a", "row": i + 1, "time": times[i], "end": times[i] + step, "valid": int(there)}
            writer.writerow(dict.fromkeys(columns, "") | row)
    return folder


def test_rows_of_older_tables_end_when_the_next_one_starts(tmp_path):
    folder = tabulate(tmp_path / "a", [0, 1, 0], [name for name in COLUMNS if name not in LATER])
    table = read_crop_table(folder, ["00002.png"])
    assert table.names == ["", "00002.png", ""]
    np.testing.assert_allclose(table.times, [[0, 0.2], [0.2, 0.4], [0.4, 0.6]])
    write(folder, **{"00002": face(2)})
    crops = MODALITIES["face"].reader()(Source("a", folder), None, DecodeOptions(faces=FaceOptions(fps=5)))
    assert crops.valid.tolist() == [False, True, False]
    np.testing.assert_array_equal(crops.images[1], face(2))


def test_a_table_of_another_program_is_ignored(tmp_path):
    folder = write(tmp_path / "a", **{"1": face(1), "3": face(3)})
    for text in ("time,valid\n0.0,1\n0.2,0\n", "frame;score\n1;2\n", ""):
        (folder / "faces.csv").write_text(text)
        assert image_names(folder, 6)[0] == ["1.png", "", "3.png"]
    (folder / "faces.csv").write_bytes(b"\xff\x00")
    assert image_names(folder, 6)[0] == ["1.png", "", "3.png"]
    assert not is_crop_table(folder / "gone.csv")


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (["00001"], "has a faces.csv that lists 00003.png, which is not there"),
        (["00001", "00002", "00003"], "has a faces.csv that does not list 00002.png, which is there"),
        (["00001", "00003", "00004"], "has a faces.csv that does not list 00004.png, which is there"),
    ],
)
def test_other_images_than_the_table_lists_are_a_failure(tmp_path, images, sentence):
    folder = write(tabulate(tmp_path / "a", [1, 0, 1, 0]), **{name: face(1) for name in images})
    with pytest.raises(MediaError, match=f"^{sentence}; {AGAIN}$"):
        image_names(folder, 5)
    (folder / "faces.csv").unlink()
    assert len(image_names(folder, 5)[0]) == int(images[-1])


@pytest.mark.parametrize(("column", "cell"), [(1, "7"), (1, "x"), (2, ""), (-2, "yes")])
def test_a_damaged_table_is_a_failure(tmp_path, column, cell):
    folder = tabulate(tmp_path / "a", [0, 0])
    lines = [line.split(",") for line in (folder / "faces.csv").read_text().splitlines()]
    lines[1][column] = cell
    (folder / "faces.csv").write_text("\n".join(map(",".join, lines)))
    with pytest.raises(MediaError, match=rf"^has a damaged faces.csv \(.*\); {AGAIN}$"):
        read_crop_table(folder, [])
    (folder / "faces.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(MediaError, match="its rows are not numbered from 1"):
        read_crop_table(folder, [])


def test_times_that_are_no_rate_need_native(tmp_path):
    folder = tabulate(tmp_path / "a", [0, 0, 0], times=[0.0, 0.04, 0.5])
    with pytest.raises(MediaError, match=r"holds crops of frames at uneven times, by its faces.csv; use --fps native"):
        image_names(folder, 25)
    assert image_names(folder, None)[0] == ["", "", ""]
    assert image_names(tabulate(folder, [0] * 200, step=1 / 29.97), 29.97)[0] == [""] * 200
    with pytest.raises(MediaError, match=r"holds crops at 29.97 rows per second, by its faces.csv; use --fps 29.97"):
        image_names(folder, 30)


def test_a_folder_with_a_table_alone_is_a_clip(tmp_path):
    tabulate(tmp_path / "crops" / "a", [0])
    (tmp_path / "crops" / "notes").mkdir()
    (tmp_path / "crops" / "notes" / "faces.csv").write_text("who,when\n")
    assert [source.id for source in find_media(tmp_path / "crops", images=True)] == ["a"]
    write(tabulate(tmp_path / "crops", [0]), sheet=face(0))
    (tmp_path / "crops" / "faces.json").write_text("{}")
    assert [source.id for source in find_media(tmp_path, images=True)] == ["crops/a"]
