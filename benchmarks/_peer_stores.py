"""What the field keeps features in today, each written and read as its users do.

A store writes clips into a folder; opened, it knows their ids, gives one clip, and gathers many into an array that is
there already. What writes nothing but arrays keeps its ids in file names or in a text file.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._feature_clips import FeatureClips


class Store(ABC):
    """One way to keep features; opening it is reading its list of clips."""

    ids: Sequence[str]

    @staticmethod
    @abstractmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        """Write clips into an empty folder."""

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        """(frames, dim) of a clip."""

    def load(self, ids: Sequence[str], out: np.ndarray[Any, Any]) -> None:
        """Fill the rows of an array with clips, one behind the other."""
        at = 0
        for clip_id in ids:
            frames = self[clip_id]
            out[at : at + len(frames)] = frames
            at += len(frames)


class NpyFiles(Store):
    """A .npy file per clip."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        for clip_id, frames in clips:
            np.save(folder / f"{clip_id}.npy", frames)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids = sorted(path.stem for path in folder.iterdir())

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return np.load(self.folder / f"{clip_id}.npy")


class Hdf5DataSets(Store):
    """One HDF5 file with a data set per clip, through h5py."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        import h5py

        with h5py.File(folder / "c.h5", "w") as file:
            for clip_id, frames in clips:
                file.create_dataset(clip_id, data=frames)

    def __init__(self, folder: Path) -> None:
        import h5py

        self.file = h5py.File(folder / "c.h5", "r")
        self.ids = list(self.file)

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return self.file[clip_id][()]

    def load(self, ids: Sequence[str], out: np.ndarray[Any, Any]) -> None:
        at = 0
        for clip_id in ids:
            array = self.file[clip_id]
            array.read_direct(out, dest_sel=np.s_[at : at + len(array)])
            at += len(array)


class ZarrArrays(Store):
    """One Zarr group with an array per clip: one uncompressed chunk each, which is fastest."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        import zarr

        group = zarr.create_group(folder / "c.zarr", zarr_format=3)
        for clip_id, frames in clips:
            group.create_array(clip_id, data=frames, chunks=frames.shape, compressors=None)

    def __init__(self, folder: Path) -> None:
        import zarr

        self.group = zarr.open_group(folder / "c.zarr", mode="r")
        self.ids = sorted(path.name for path in (folder / "c.zarr").iterdir() if path.is_dir())

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return self.group[clip_id][:]


class Lhotse(Store):
    """Lhotse's NumpyHdf5Writer and a manifest; its other writers compress with loss, or write a file per clip."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        from lhotse import Features, FeatureSet
        from lhotse.features.io import NumpyHdf5Writer

        with NumpyHdf5Writer(folder / "c") as writer, FeatureSet.open_writer(folder / "c.jsonl.gz") as manifest:
            for clip_id, frames in clips:
                manifest.write(
                    Features(
                        recording_id=clip_id,
                        channels=0,
                        type="wav2vec2",
                        start=0.0,
                        duration=len(frames) * 0.02,
                        frame_shift=0.02,
                        num_frames=len(frames),
                        num_features=frames.shape[1],
                        sampling_rate=16000,
                        storage_type=writer.name,
                        storage_path=writer.storage_path,
                        storage_key=writer.write(clip_id, frames),
                    )
                )

    def __init__(self, folder: Path) -> None:
        from lhotse import FeatureSet

        self.features = {entry.recording_id: entry for entry in FeatureSet.from_file(folder / "c.jsonl.gz")}
        self.ids = list(self.features)

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return self.features[clip_id].load()


class HuggingFace(Store):
    """A Hugging Face dataset on disk (Arrow, memory-mapped)."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        import datasets

        def rows() -> Any:
            for clip_id, frames in clips:
                yield {"id": clip_id, "frames": frames}

        datasets.disable_progress_bars()
        features = datasets.Features(id=datasets.Value("string"), frames=datasets.Array2D((None, clips.dim), "float16"))
        scratch = str(folder.parent / "scratch")
        made = datasets.Dataset.from_generator(rows, features=features, cache_dir=scratch, fingerprint="0")
        made.save_to_disk(folder)

    def __init__(self, folder: Path) -> None:
        import datasets

        dataset = datasets.load_from_disk(folder)
        self.ids = list(dataset["id"])
        self.row = {clip_id: i for i, clip_id in enumerate(self.ids)}
        self.frames = dataset.with_format("numpy", columns=["frames"], dtype=np.float16)

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return self.frames[self.row[clip_id]]["frames"]


class BareMemmap(Store):
    """All frames in one .npy file that is mapped into memory, with the offsets beside it."""

    @staticmethod
    def write(folder: Path, clips: FeatureClips) -> None:
        ids, lengths = [], [0]
        with (folder / "raw").open("wb") as file:
            for clip_id, frames in clips:
                frames.tofile(file)
                ids.append(clip_id)
                lengths.append(len(frames))
        np.save(folder / "offsets.npy", np.cumsum(lengths))
        (folder / "ids.txt").write_text("\n".join(ids))

    def __init__(self, folder: Path) -> None:
        self.offsets = np.load(folder / "offsets.npy")
        self.ids = (folder / "ids.txt").read_text().split("\n")
        self.row = {clip_id: i for i, clip_id in enumerate(self.ids)}
        raw = np.memmap(folder / "raw", np.float16, "r")
        self.frames = raw.reshape(self.offsets[-1], -1)

    def __getitem__(self, clip_id: str) -> np.ndarray[Any, Any]:
        return np.array(self._view(clip_id))

    def load(self, ids: Sequence[str], out: np.ndarray[Any, Any]) -> None:
        at = 0
        for clip_id in ids:
            frames = self._view(clip_id)
            out[at : at + len(frames)] = frames
            at += len(frames)

    def _view(self, clip_id: str) -> np.ndarray[Any, Any]:
        i = self.row[clip_id]
        return self.frames[self.offsets[i] : self.offsets[i + 1]]
