"""Heads on derived features: the run folder carries the transform, so that prediction can start from media."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load, save

from cache.derive.derived import transform_of
from cache.derive.transform import Transform
from cache.errors import StaleCacheError
from cache.reader import FeatureCache
from train_head.errors import RunFolderError

TRANSFORM = "transform.safetensors"


def stored_transform(stores: Sequence[FeatureCache]) -> bytes | None:
    """The arrays with which caches were derived, as a safetensors file; None where nothing was fitted for them.

    Raises:
        StaleCacheError: the caches, though fitted on the same clips, have others: on two machines, rounding may differ.
        CacheError: a transform is damaged.
    """
    arrays = [{} if (transform := transform_of(store)) is None else transform.to_arrays() for store in stores]
    contents = [save(a) if a else None for a in arrays]
    for store, content in zip(stores, contents, strict=True):
        if content != contents[0]:
            raise StaleCacheError(
                f"{stores[0].path} and {store.path} were derived with transforms that are not equal to the last bit; "
                "derive one cache from all their clips"
            )
    return contents[0]


def load_transform(folder: Path, features: Mapping[str, Any]) -> Transform | None:
    """The transform of a run; None where it was trained on extracted features.

    Args:
        folder: run folder.
        features: the `[features]` table of its config.toml.

    Raises:
        RunFolderError: the file is gone, or is not the one the head was trained with.
    """
    recipe = features["fingerprint"].get("derived")
    if recipe is None:
        return None
    if "transform_sha256" not in features:
        return Transform.from_arrays({}, recipe)
    path = folder / TRANSFORM
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != features["transform_sha256"]:
        raise RunFolderError(
            f"{path} is {'damaged' if content else 'missing'}, without which the features of media cannot be derived; "
            "run `emi train-head` into a new folder, or restore the file from a copy"
        )
    return Transform.from_arrays(load(content), recipe)
