"""Find a Hugging Face checkpoint on this machine or on the hub, and read its files without building a model."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.paths import at_home
from extract.backbones.hub import WEIGHTS, from_hub, weight_files
from extract.backbones.weight_names import Layout, layout_of, names_in
from extract.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS = ("config.json", "preprocessor_config.json", "processor_config.json")
# Keys of a configuration that change no number here: weights are always loaded as float32.
_NOT_NUMBERS = ("transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "dtype")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's local folder, the content of its small files, and its commit where it came from the hub."""

    folder: Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]
    commit: str | None = None

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, in a fixed order."""
        files = weight_files(self.folder)
        if not files:
            raise BackboneError(f"{self.folder} holds none of {', '.join(WEIGHTS)}; the checkpoint is incomplete")
        if missing := [file.name for file in files if not file.is_file()]:
            raise BackboneError(f"{self.folder} lacks {missing[0]}, which its index names; download it again")
        return files

    def weights_sha256(self) -> str:
        """Return the SHA-256 of the weight files."""
        digest = hashlib.sha256()
        for path in self.weight_files():
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        return digest.hexdigest()

    def config_sha256(self) -> str:
        """Return the SHA-256 of the configuration; it does not depend on the version of transformers that saved it."""
        parts = [{k: v for k, v in part.items() if k not in _NOT_NUMBERS} for part in (self.config, self.preprocessor)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def layout(self) -> Layout:
        """Find the encoder and the heads by the names of the weights.

        Raises:
            BackboneError: a weight file is missing or cannot be read.
        """
        names: set[str] = set()
        for path in self.weight_files():
            with _reading(path):
                names |= names_in(path)
        last_mean = self.config.get("pooling_mode", "mean") == "mean" and not self.config.get("use_weighted_layer_sum")
        return layout_of(names, self.labels if last_mean else ())  # a supported head takes the last state and its mean

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        labels = self.config.get("id2label")
        if not isinstance(labels, dict) or not all(str(key).isdecimal() for key in labels):
            return ()
        return tuple(str(labels[key]) for key in sorted(labels, key=int))

    def tensors(self, wanted: Callable[[str], bool]) -> "dict[str, Tensor]":
        """Read the tensors whose names are wanted.

        Raises:
            BackboneError: a weight file is missing or cannot be read.
        """
        import torch
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for path in self.weight_files():
            with _reading(path):
                if path.suffix == ".safetensors":
                    with safe_open(path, "pt") as file:
                        found |= {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118
                else:
                    mmap = zipfile.is_zipfile(path)  # torch before 1.6 wrote no zip file
                    state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
                    found |= {key: value for key, value in state.items() if wanted(key)}
        return found


def find_checkpoint(name: str, revision: str | None = None) -> Checkpoint:
    """Open a checkpoint: a local folder, or an id in the hub's local cache or on the hub.

    Args:
        name: folder, or Hugging Face id, also as `ID@REVISION`.
        revision: branch, tag or commit of the id; the hub's main branch by default.

    Raises:
        BackboneError: it is not available, or not a checkpoint of a speech model.
    """
    folder = Path(at_home(name))
    local = bool(name) and folder.is_dir()  # an empty name would be the working folder
    folder = folder if local else from_hub(name, revision)
    config = folder / "config.json"
    if not config.is_file():
        raise BackboneError(f"{folder} is no checkpoint folder: it has no config.json")
    return Checkpoint(folder, _json(config), _preprocessor(folder), None if local else folder.name)


def save_checkpoint(folder: Path, tensors: "Mapping[str, Tensor]", config: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors; the weights appear last, and whole."""
    from safetensors.torch import save_file

    temporary = folder / f"{WEIGHTS[0]}.tmp"
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata={"format": "pt"})
    (folder / CONFIGS[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / WEIGHTS[0])


def _preprocessor(folder: Path) -> Mapping[str, Any]:
    """Read the settings of the feature extractor as transformers 5 does: first from the processor's."""
    alone, processor = (_json(path) if (path := folder / name).is_file() else {} for name in CONFIGS[1:])
    parts = (processor.get(name) for name in ("feature_extractor", "audio_processor"))
    return next((part for part in parts if isinstance(part, dict)), alone)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackboneError(f"{path} cannot be read ({error.strerror or error})") from error
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # readers of damaged files raise many types
        first_line = str(error).strip().partition("\n")[0]
        raise BackboneError(
            f"{path} is damaged ({type(error).__name__}: {first_line}); download the checkpoint again"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object")
    return content
