"""A cache to export: clips without VAD, under any ids."""

import numpy as np
import pytest

from cache import CacheWriter, Clip, open_cache


@pytest.fixture
def clips(tmp_path, make_header):
    """Make a cache of clips without VAD."""

    def make(*ids):
        with CacheWriter(tmp_path / "clips.h5", make_header(vad=False)) as writer:
            for number, clip_id in enumerate(ids):
                writer.add(Clip(clip_id, np.full((2, 4), number, np.float16), None, None, 0.04))
        return open_cache(tmp_path / "clips.h5")

    return make
