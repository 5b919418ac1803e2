"""Export to Arrow: a Parquet file, or a folder that `datasets.load_from_disk` opens.

Both have a row per clip: `id`, `seconds`, `frames` (T, dim), and `vad` (T, 3), `vad_pooled` (3,), `times` (T, 2) and
`valid` (T,) where the cache has them; Parquet also `num_frames`. In Parquet, `frames` are
list<fixed_size_list<halffloat or float>[dim]>, and the file's metadata hold `fingerprint` and `emi_export` as JSON.
pyarrow and datasets are imported when they are needed.
"""

import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.exchange.selection import CHUNK_BYTES, KEY, Selection
from cache.format import Clip

DATA = "data-00000-of-00001.arrow"


def write_parquet(selection: Selection, file: Path) -> None:
    """Write a row group for every `CHUNK_BYTES` of frames, so that memory stays flat here and for who reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = selection.store.header
    fields = [("id", pa.string()), ("seconds", pa.float64()), ("num_frames", pa.int64())]
    for name, layout in header.layout.items():
        number = pa.from_numpy_dtype(layout.dtype)
        row = pa.list_(number, *layout.shape) if layout.shape else number
        fields.append((name, pa.list_(row) if layout.by_frame else row))
    metadata = {
        b"fingerprint": json.dumps(selection.manifest["fingerprint"]).encode(),
        KEY: json.dumps(selection.manifest).encode(),
    }
    schema = pa.schema(fields, metadata=metadata)
    # Features hardly compress and never repeat: a dictionary or statistics of them would only cost memory.
    options = {"use_dictionary": False, "write_statistics": ["id", "seconds", "num_frames"]}
    with pq.ParquetWriter(file, schema, compression="zstd", **options) as writer:
        for chunk in selection.chunks():
            clips = list(selection.clips(chunk))
            writer.write_batch(pa.record_batch([_column(clips, column) for column in schema], schema=schema))


def _column(clips: Sequence[Clip], field: Any) -> Any:
    """An attribute of clips as an Arrow array."""
    import pyarrow as pa

    if field.name == "num_frames":
        return pa.array([len(clip.frames) for clip in clips], field.type)
    values = [getattr(clip, field.name) for clip in clips]
    if field.name in ("id", "seconds"):
        return pa.array(values, field.type)
    numbers = pa.array(np.concatenate(values).reshape(-1))
    if field.name == "vad_pooled":
        return pa.FixedSizeListArray.from_arrays(numbers, type=field.type)
    row = field.type.value_type
    rows = pa.FixedSizeListArray.from_arrays(numbers, type=row) if pa.types.is_fixed_size_list(row) else numbers
    offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, rows, type=field.type)


def write_datasets(selection: Selection, folder: Path) -> None:
    """Write the file, the features and the state that `load_from_disk` looks for.

    `Dataset.save_to_disk` would write twice as much, in batches of 1000 clips (0.7 GB of wav2vec2-large).
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    header = selection.store.header
    types = {
        "id": datasets.Value("string"),
        "seconds": datasets.Value("float64"),
        "frames": datasets.Array2D((None, header.dim), str(header.dtype)),
    }
    if header.vad_names:
        types["vad"] = datasets.Array2D((None, 3), "float32")
        types["vad_pooled"] = datasets.Sequence(datasets.Value("float32"), length=3)
    if "times" in header.optional:
        types["times"] = datasets.Array2D((None, 2), "float32")
    if "valid" in header.optional:
        types["valid"] = datasets.Sequence(datasets.Value("bool"))
    features = datasets.Features(types)
    longest = int(np.diff(selection.store.offsets(selection.ids)).max()) * selection.frame_bytes
    batch = max(1, min(1000, CHUNK_BYTES // longest))
    folder.mkdir()
    with (
        (folder / DATA).open("wb") as file,
        ArrowWriter(features=features, stream=file, writer_batch_size=batch) as writer,
    ):
        for clip in selection.clips(selection.ids):
            writer.write(features.encode_example({name: getattr(clip, name) for name in types}))
        writer.finalize(close_stream=False)
    datasets.DatasetInfo(features=features).write_to_directory(folder)
    state: dict[str, Any] = {
        "_data_files": [{"filename": DATA}],
        "_fingerprint": secrets.token_hex(8),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
