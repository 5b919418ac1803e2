"""When the images of a folder were taken: by the frames of the video that they were cut out of.

Image number i is frame i of the video, as in Aff-Wild2 (`cropped_aligned/<trial>/00001.jpg`), where two trials may
share a video (`<video>_left`, `<video>_right`).
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cache.ids import MEDIA_SUFFIXES, stored_form
from cache.paths import StrPath, at_home
from extract.errors import MediaError, MediaListError
from extract.sources import Source

SIDES = ("_left", "_right")
FEW_ROWS, FEW_SHARE = 3, 0.01
"""Images beyond the last frame that are left out: decoders differ by a frame or two."""
LEAST_SHARE = 0.5
"""Of the frames: with fewer images, these were taken at another rate."""


def with_videos(sources: Sequence[Source], videos: StrPath) -> list[Source]:
    """Return the clips, those that are folders of images with their videos.

    Args:
        sources: the clips.
        videos: a folder that is searched for files that are called like the last part of a clip's id, or like that
            without `_left` or `_right`.

    Raises:
        MediaListError: it is no folder.
    """
    root = Path(at_home(videos))
    if not root.is_dir():
        raise MediaListError(f"--videos {root} is not a folder; name the one with the videos of the folders of images")
    found: dict[str, list[Path]] = defaultdict(list)
    for folder, _, names in os.walk(root, followlinks=True):
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            if path.suffix.lower() in MEDIA_SUFFIXES:
                found[stored_form(path.stem)].append(path)
    return [_with_video(source, found, root) if source.path.is_dir() else source for source in sources]


def _with_video(source: Source, found: dict[str, list[Path]], root: Path) -> Source:
    from extract.faces.video import has_pictures  # imports PyAV

    name = source.id.rpartition("/")[2]
    whole = next((name.removesuffix(side) for side in SIDES if name.endswith(side)), name)
    films = found.get(name) or found.get(whole, [])
    if len(films) > 1:  # sound that was taken out of a video may lie beside it
        films = [path for path in films if has_pictures(path)]
    if len(films) == 1:
        return replace(source, video=films[0])
    several = f"has several videos in {root}: {', '.join(map(str, films[:2]))}; keep one"
    return replace(source, problem=several if films else f"has no video called {whole} in {root}")


def at_frames(names: Sequence[str], video: str, frames: int, *, whole: bool) -> tuple[list[str], str]:
    """Return a name per frame, and a remark where numbers of images and frames differ.

    Where images end before the video, the last frames have none. A few images too many are left out.

    Args:
        names: of the images by row, "" where there is none.
        video: its name.
        frames: number of its frames.
        whole: whether these are all frames of the video, not those before a cut.

    Raises:
        MediaError: the numbers are too different.
    """
    rows = len(names)
    if (whole and rows > frames + max(FEW_ROWS, FEW_SHARE * frames)) or rows < LEAST_SHARE * frames:
        raise MediaError(
            f"has images up to row {rows}, and {video} {frames}{'' if whole else ' or more'} frames, so they are not "
            "its frames; name the folder of their own videos with --videos, or give the rate of the images with --fps"
        )
    remark = ""
    if rows > frames and whole:
        remark = f"has images up to row {rows}, and {video} {frames} frames: the last {rows - frames} were left out"
    elif rows < frames:
        where = "" if whole else " before the cut"
        remark = (
            f"has images up to row {rows}, and {video} {frames} frames{where}: the last {frames - rows} have no face"
        )
    return [*names[:frames], *[""] * (frames - rows)], remark
