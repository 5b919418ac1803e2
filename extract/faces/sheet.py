"""Draw a contact sheet of face crops, on which a person sees at a glance whether the faces are right."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

from extract.faces.align import CROP_SIDE
from extract.faces.crop_table import TABLE, crop_name
from extract.faces.images import read_image, scaled

SHEET = "sheet.png"
CLIPS, CROPS = 40, 10
"""Clips on a sheet, and crops of each: at equal distances, with the first and the last."""
LABEL, GAP = 160, 4
"""Pixels: width of the names, and between crops."""
T = TypeVar("T")


def draw_sheet(out: Path, ids: Sequence[str]) -> Path:
    """Write `OUT/sheet.png`: a line per clip with crops over its length, crossed where no face was found.

    Args:
        out: folder that `extract.faces.crop_folder.write_faces` filled.
        ids: clips in it.
    """
    ids = _spread(ids, CLIPS)
    step = CROP_SIDE + GAP
    sheet = Image.new("RGB", (LABEL + CROPS * step, max(1, len(ids)) * step), "white")
    pen = ImageDraw.Draw(sheet)
    for line, id in enumerate(ids):
        name = id.encode("ascii", "replace").decode()
        pen.text((GAP, line * step + GAP), "\n".join(name[i : i + 24] for i in range(0, len(name), 24)), fill="black")
        with (out / id / TABLE).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for place, row in enumerate(_spread(rows, CROPS)):
            left, top = LABEL + place * step, line * step
            if row["valid"] == "1":
                crop = scaled(read_image(out / id / crop_name(int(row["row"]) - 1)), CROP_SIDE)
                sheet.paste(Image.fromarray(crop), (left, top))
            else:
                right, bottom = left + CROP_SIDE - 1, top + CROP_SIDE - 1
                pen.rectangle((left, top, right, bottom), fill="lightgrey")
                pen.line((left, top, right, bottom), fill="red", width=2)
                pen.line((left, bottom, right, top), fill="red", width=2)
    sheet.save(out / SHEET)
    return out / SHEET


def _spread(items: Sequence[T], count: int) -> list[T]:
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in places.tolist()]
