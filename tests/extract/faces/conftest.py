"""Videos of given pictures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def encode():
    """Write (height, width, 3) uint8 pictures as a video at a constant rate, or at times in units of 1 / rate."""

    def encode(path: Path, pictures: list[np.ndarray], rate: int = 25, times: list[int] | None = None) -> Path:
        with av.open(str(path), "w") as out:
            video = out.add_stream("libx264", rate=rate, options={"crf": "12"})
            video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], "yuv420p"
            for i, picture in enumerate(pictures):
                frame = av.VideoFrame.from_ndarray(picture)
                frame.pts, frame.time_base = times[i] if times else i, Fraction(1, rate)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        return path

    return encode
