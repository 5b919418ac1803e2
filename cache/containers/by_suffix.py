"""Choose the container of a cache by the suffix of its path."""

import os
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from cache.containers.container import Container
from cache.errors import CacheFormatError
from cache.paths import StrPath, at_home


def open_container(path: StrPath) -> Container:
    """Choose the container by suffix: `.zarr` (folder or URL) or `.h5` / `.hdf5` (file); `file://` is a path.

    Raises:
        CacheFormatError: any other suffix.
    """
    text = os.fspath(at_home(path)).rstrip("/")
    if text.startswith("file://"):
        text = url2pathname(urlsplit(text).path)
    suffix = Path(text).suffix.lower()
    if suffix == ".zarr":
        from cache.containers.zarr_group import ZarrContainer

        return ZarrContainer(text)
    if suffix in (".h5", ".hdf5"):
        from cache.containers.hdf5_file import Hdf5Container

        return Hdf5Container(text)
    raise CacheFormatError(
        f"a feature cache is named NAME.zarr or NAME.h5, got {text!r}; add the suffix of the container you want"
    )
