"""What an export was made from, written into it, so that it is never taken for that of another cache."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from cache import fingerprint as fp
from cache.errors import CacheError
from cache.reader import FeatureCache

FORMAT = "emi-export"
VERSION = 1
MANIFEST = "export.json"
"""The file in a folder that holds it."""
KEY = b"emi_export"
"""The key in the metadata of a Parquet file."""


class ExportExistsError(CacheError, FileExistsError):
    """Something else lies where an export should go; it is left as it was."""


def manifest_of(store: FeatureCache, kind: str, ids: Sequence[str]) -> dict[str, Any]:
    """What an export is made from: equal manifests mean equal exports."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "fingerprint": store.fingerprint,
        "dim": store.dim,
        "vad_names": list(store.vad_names),
        "hop_seconds": store.hop_seconds,
    }
    offsets = store.offsets(ids)  # raises where an id is unknown
    if kind != "npz":  # which may gain clips, and checks each by itself
        seconds = dict(zip(store.ids, store.seconds.tolist(), strict=True))
        content = "".join(f"{clip_id}\0{store.checksum(clip_id)}\0{seconds[clip_id]!r}\0" for clip_id in ids)
        crc = int(google_crc32c.value(content.encode()))
        manifest |= {"clips": len(ids), "frames": int(offsets[-1]), "content_crc32c": crc}
    return manifest


def must_fit(place: Path, manifest: dict[str, Any]) -> bool:
    """Whether an export made from the same is at a place; False where the place is free.

    Raises:
        ExportExistsError: something else is there.
    """
    if not os.path.lexists(place) or (manifest["kind"] != "parquet" and place.is_dir() and not any(place.iterdir())):
        return False
    found = read_manifest(place, manifest["kind"])
    if found is None:
        raise ExportExistsError(f"{place} is there, and no export of a cache; choose another OUT, or remove it")
    differing = fp.differences(found["fingerprint"], manifest["fingerprint"]) + [
        f"{key} (there {found.get(key)}, wanted {value})"
        for key, value in manifest.items()
        if key != "fingerprint" and found.get(key) != value
    ]
    if differing:
        raise ExportExistsError(
            f"{place} was exported from something else: {'; '.join(differing)}. Choose another OUT, or remove it"
        )
    return True


def read_manifest(place: Path, kind: str) -> dict[str, Any] | None:
    """What the export at a place was made from.

    Args:
        place: a folder; a file where the kind is `parquet`.
        kind: of `cache.exchange.exporting.KINDS`. All but `parquet` are told apart by what the manifest says only.

    Returns:
        The manifest; None where there is nothing, or no export.
    """
    try:
        if kind == "parquet":
            import pyarrow.parquet

            text = pyarrow.parquet.read_metadata(place).metadata[KEY]
        else:
            text = (place / MANIFEST).read_bytes()
        found = json.loads(text)
        return found if found["format"] == FORMAT and isinstance(found["fingerprint"], dict) else None
    except Exception:  # whatever it is, it is no export
        return None
