"""Export to Arrow: a Parquet file, or a folder that `datasets.load_from_disk` opens.

Both have a row per clip: `id`, `seconds`, `frames` (T, dim), and `vad` (T, 3) and `vad_pooled` (3,) where the cache has
them; Parquet also `num_frames`. In Parquet, `frames` are list<fixed_size_list<halffloat or float>[dim]>, and the file's
metadata hold `fingerprint` and `emi_export` as JSON. pyarrow and datasets are imported when they are needed.
"""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.errors import EmiError
from cache.exchange.export_manifest import KEY, MANIFEST
from cache.exchange.exporting import CHUNK_BYTES, ExportSummary, Selection
from cache.format import Array, Clip

STATE = "state.json"


def write_parquet(selection: Selection, file: Path, summary: ExportSummary) -> None:
    """Write a row group for every `CHUNK_BYTES` of frames, so that memory stays flat here and for who reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = selection.store.header
    vectors = pa.list_(pa.from_numpy_dtype(header.dtype), header.dim)
    fields = [("id", pa.string()), ("seconds", pa.float64()), ("num_frames", pa.int64()), ("frames", pa.list_(vectors))]
    if header.vad_names:
        triples = pa.list_(pa.float32(), 3)
        fields += [("vad", pa.list_(triples)), ("vad_pooled", triples)]
    manifest = json.dumps(selection.manifest)
    metadata = {b"fingerprint": json.dumps(selection.manifest["fingerprint"]).encode(), KEY: manifest.encode()}
    schema = pa.schema(fields, metadata=metadata)
    # Features hardly compress and never repeat: a dictionary or statistics of them would only cost memory.
    options: dict[str, Any] = {"use_dictionary": False, "write_statistics": ["id", "seconds", "num_frames"]}
    with pq.ParquetWriter(file, schema, compression="zstd", **options) as writer:
        for chunk in selection.chunks():
            clips = list(selection.clips(chunk))
            writer.write_batch(pa.record_batch([_column(clips, column) for column in schema], schema=schema))
            summary.written += len(clips)


def _column(clips: Sequence[Clip], field: Any) -> Any:
    """An attribute of clips as an Arrow array."""
    import pyarrow as pa

    if field.name in ("id", "seconds"):
        return pa.array([getattr(clip, field.name) for clip in clips], field.type)
    if field.name == "num_frames":
        return pa.array([len(clip.frames) for clip in clips], field.type)
    arrays: list[Array] = [getattr(clip, field.name) for clip in clips]
    if field.name == "vad_pooled":
        return pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(arrays)), type=field.type)
    values = pa.array(np.concatenate(arrays).reshape(-1))
    offsets = pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32())
    rows = pa.FixedSizeListArray.from_arrays(values, type=field.type.value_type)
    return pa.ListArray.from_arrays(offsets, rows, type=field.type)


def write_datasets(selection: Selection, folder: Path, summary: ExportSummary) -> None:
    """Let datasets write its Arrow files, and move them where `load_from_disk` looks.

    `save_to_disk` would copy them, in batches of 1000 clips (0.7 GB of wav2vec2-large) and through a memory map.
    """
    import datasets

    header = selection.store.header
    features = {
        "id": datasets.Value("string"),
        "seconds": datasets.Value("float64"),
        "frames": datasets.Array2D((None, header.dim), str(header.dtype)),
    }
    if header.vad_names:
        features["vad"] = datasets.Array2D((None, 3), "float32")
        features["vad_pooled"] = datasets.Sequence(datasets.Value("float32"), length=3)
    longest = int(np.diff(selection.store.offsets(selection.ids)).max()) * selection.frame_bytes
    with _silent_progress():
        try:
            dataset = datasets.Dataset.from_generator(
                _Examples(lambda: selection.clips(selection.ids)),
                features=datasets.Features(features),
                cache_dir=os.fspath(folder / "scratch"),
                writer_batch_size=max(1, min(1000, CHUNK_BYTES // longest)),
            )
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, EmiError | OSError):
                raise error.__cause__ from None
            raise
    files = [Path(file["filename"]) for file in dataset.cache_files]
    names = [f"data-{i:05d}-of-{len(files):05d}.arrow" for i in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.replace(folder / name)
    shutil.rmtree(folder / "scratch")
    dataset.info.write_to_directory(folder)
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": secrets.token_hex(8),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / STATE).write_text(json.dumps(state, indent=2), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(selection.manifest, indent=2), encoding="utf-8")
    summary.written = len(selection.ids)


class _Examples:
    """The rows of a dataset; datasets calls it, and hashes it to name its scratch files."""

    def __init__(self, clips: Callable[[], Iterator[Clip]]) -> None:
        self._clips = clips

    def __call__(self) -> Iterator[dict[str, Any]]:
        for clip in self._clips():
            row = {"id": clip.id, "seconds": clip.seconds, "frames": clip.frames}
            yield row if clip.vad is None else row | {"vad": clip.vad, "vad_pooled": clip.vad_pooled}

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (secrets.token_hex(),)  # the cache and its open files cannot be hashed, and need not be


@contextlib.contextmanager
def _silent_progress() -> Iterator[None]:
    """Without the bars of datasets: `on_progress` reports already."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()
