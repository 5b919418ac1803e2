"""Find a Hugging Face checkpoint on this machine or on the hub, and read its files without building a model."""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.backbones.licence import CARD
from extract.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers prefers them."""
CONFIGS = ("config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's local folder and what its small files say."""

    folder: Path
    config: Mapping[str, Any]
    preprocessor: Mapping[str, Any]

    def weight_files(self) -> list[Path]:
        """The files that hold the weights, in a fixed order."""
        found = next((self.folder / name for name in WEIGHTS if (self.folder / name).is_file()), None)
        if found is None:
            raise BackboneError(f"{self.folder} holds none of {', '.join(WEIGHTS)}; it is no complete checkpoint")
        if found.suffix != ".json":
            return [found]
        shards = [self.folder / name for name in sorted(set(_json(found)["weight_map"].values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise BackboneError(f"{self.folder} lacks {missing[0]}, which its index names; download it again")
        return shards

    def weights_sha256(self) -> str:
        """SHA-256 over the bytes of the weight files."""
        digest = hashlib.sha256()
        for path in self.weight_files():
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()

    def config_sha256(self) -> str:
        """SHA-256 over the configuration, its keys sorted, whatever version of transformers saved it."""
        parts = [{k: v for k, v in part.items() if k not in _NOT_NUMBERS} for part in (self.config, self.preprocessor)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def tensors(self, prefix: str) -> "dict[str, Tensor]":
        """The tensors whose names start with a prefix, by the rest of their names."""
        import torch
        from safetensors import safe_open

        found: dict[str, Tensor] = {}
        for path in self.weight_files():
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    found |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
            else:
                mmap = zipfile.is_zipfile(path)  # not so before torch 1.6
                state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
                found |= {key: value for key, value in state.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in found.items()}


_NOT_NUMBERS = ("transformers_version", "_name_or_path", "name_or_path", "torch_dtype", "dtype")
"""Keys of a configuration that change no number here: weights are always loaded as float32."""


def find_checkpoint(name: str) -> Checkpoint:
    """Open a local folder, or an id from the hub's local cache, or download it.

    Raises:
        BackboneError: it is not to be had, or no checkpoint of a speech model.
    """
    folder = Path(name).expanduser()
    if not name or not folder.is_dir():  # an empty name would be the working folder
        folder = _from_hub(name)
    config = folder / "config.json"
    if not config.is_file():
        raise BackboneError(f"{folder} is no checkpoint folder: it has no config.json")
    preprocessor = folder / "preprocessor_config.json"
    return Checkpoint(folder, _json(config), _json(preprocessor) if preprocessor.is_file() else {})


def _from_hub(name: str) -> Path:
    """Prefer what is already on the disk, so that working offline costs no time-outs."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError

    for local in (True, False):
        try:
            if not local:  # one plain request: without a network the download itself retries for 23 s
                huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(name, "config.json"), timeout=10)
            config = Path(huggingface_hub.hf_hub_download(name, "config.json", local_files_only=local))
            for optional in CONFIGS[1:]:
                _fetch(name, optional, local)
            with contextlib.suppress(Exception):  # without its model card only its licence is unknown
                _fetch(name, CARD, local)
            weights = next((path for wanted in WEIGHTS if (path := _fetch(name, wanted, local))), None)
            if weights is None and local:
                continue
            if weights is None:
                raise BackboneError(f"{name} on the hub holds none of {', '.join(WEIGHTS)}; choose another checkpoint")
            if weights.suffix == ".json":
                for shard in sorted(set(_json(weights)["weight_map"].values())):
                    huggingface_hub.hf_hub_download(name, shard, local_files_only=local)
            return config.parent
        except BackboneError:
            raise
        except HFValidationError:
            break
        except Exception as error:  # the hub's client raises many kinds, down to the HTTP library's
            reason = error
            if not local:
                raise BackboneError(
                    f"backbone {name!r} is neither a folder nor in the local Hugging Face cache, and the hub did not "
                    f"give it ({type(reason).__name__}); give a local folder that holds its config.json and weights "
                    "with --backbone FOLDER, or use --backbone silero, which needs no download"
                ) from error
    raise BackboneError(
        f"backbone {name!r} is no folder, no Hugging Face id and no known name; give a local folder with "
        "--backbone FOLDER, an id such as facebook/wav2vec2-large-robust, or --backbone silero"
    )


def _fetch(name: str, file: str, local: bool) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.hf_hub_download(name, file, local_files_only=local))
    except LocalEntryNotFoundError:
        if local:
            return None
        raise
    except EntryNotFoundError:
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackboneError(f"{path} is not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise BackboneError(f"{path} is not a JSON object")
    return content
