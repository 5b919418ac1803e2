"""Find a Hugging Face checkpoint on this machine or on the hub, and read its files without building a model.

Of the hub, only the files that are used are downloaded.
"""

import contextlib
import errno
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache.paths import at_home
from extract.backbones.weight_names import Layout, layout_of, names_in
from extract.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

SMALL = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "README.md",  # which names the licence
    "LICENSE*",
)
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
"""Downloaded where a repository has no safetensors."""
WEIGHTS = (*SAFETENSORS[:2], *PICKLED[:2])
"""Files that hold the weights or name their parts, in the order in which transformers prefers them."""
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

    @property
    def model_type(self) -> str | None:
        """Which architecture it is; files of timm do not say so."""
        return self.config.get("model_type", "timm_wrapper" if "pretrained_cfg" in self.config else None)

    def display_name(self, source: str) -> str:
        """Return a hub id unchanged, and of a folder its name only, so that moving it changes nothing."""
        return self.folder.resolve().name if self.commit is None else source

    def weight_files(self) -> list[Path]:
        """Return the files that hold the weights, in a fixed order."""
        files = _weight_files(self.folder)
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
        BackboneError: it is not available, or not a checkpoint.
    """
    folder = Path(at_home(name))
    if folder.is_file():
        raise BackboneError(
            f"{name} is a file, and a backbone is a folder; `emi import-weights {name} FOLDER` makes one of the "
            "published weights of VGGish or an IResNet"
        )
    local = bool(name) and folder.is_dir()  # an empty name would be the working folder
    folder = folder if local else _from_hub(name, revision)
    config = folder / "config.json"
    if not config.is_file():
        raise BackboneError(f"{folder} is no checkpoint folder: it has no config.json")
    # as transformers 5: the settings of the feature extractor come from those of the processor, where it has some
    alone, processor = (_json(path) if (path := folder / name).is_file() else {} for name in CONFIGS[1:])
    parts = (processor.get(name) for name in ("feature_extractor", "audio_processor", "image_processor"))
    preprocessor = next((part for part in parts if isinstance(part, dict)), alone)
    return Checkpoint(folder, _json(config), preprocessor, None if local else folder.name)


def save_checkpoint(folder: Path, tensors: "Mapping[str, Tensor]", config: Mapping[str, Any]) -> None:
    """Write config.json and model.safetensors; the weights appear last, and whole."""
    from safetensors.torch import save_file

    temporary = folder / f"{WEIGHTS[0]}.tmp"
    save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, temporary, metadata={"format": "pt"})
    (folder / CONFIGS[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(folder / WEIGHTS[0])


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


def _from_hub(name: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, which is named by its commit.

    Files on the disk are preferred, so that nothing waits for time-outs without a network.

    Args:
        name: Hugging Face id, also as `ID@REVISION`.
        revision: branch, tag or commit; the hub's main branch by default.

    Raises:
        BackboneError: the hub does not provide it, or it holds no weights.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    repository, _, named = name.partition("@")
    revision = revision or named or None
    try:
        config = huggingface_hub.try_to_load_from_cache(repository, CONFIGS[0], revision=revision)
        local = Path(config).parent if isinstance(config, str) else None
        local = local if local and _has_weights(local) else None
        if local is not None and any((local / file).is_file() for file in CONFIGS[1:]):
            return local
        try:  # one plain request: without a network the download would retry for 23 s
            wanted = local.name if local else revision
            url = huggingface_hub.hf_hub_url(repository, "config.json", revision=wanted)
            huggingface_hub.get_hf_file_metadata(url, timeout=10)
            folder = _download(repository, wanted)
        except Exception as error:  # the hub's client has types of its own for a network that fails, by version
            if local is None or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES):
                raise
            return local  # without the processor's file, which whatever downloaded the rest may have skipped
    except HFValidationError:
        raise BackboneError(
            f"backbone {name!r} is no folder, no Hugging Face id and no known name; give a local folder with "
            "--backbone FOLDER, an id such as facebook/wav2vec2-large-robust, or --backbone silero"
        ) from None
    except RevisionNotFoundError as error:
        raise BackboneError(
            f"backbone {repository!r} has no revision {revision!r} on the hub; --revision takes one of its branches, "
            "tags or commits"
        ) from error
    except BackboneError:
        raise
    except Exception as error:  # the hub's client raises many types, including those of the HTTP library
        raise BackboneError(
            f"backbone {name!r} is neither a folder nor in the local Hugging Face cache, and the hub did not "
            f"provide it ({type(error).__name__}); give a local folder that holds its config.json and weights "
            "with --backbone FOLDER, or use --backbone silero, which needs no download"
        ) from error
    if not _has_weights(folder):
        raise BackboneError(
            f"{name} on the hub holds none of {SAFETENSORS[0]} and {PICKLED[0]}, whole or in parts; choose another "
            "checkpoint"
        )
    return folder


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights, whether they exist or not; empty where there are none.

    Raises:
        BackboneError: the index that names the files is damaged.
    """
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None or found.suffix != ".json":
        return [found] if found else []
    try:
        parts = json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(parts))]
    except (ValueError, KeyError, AttributeError) as error:
        raise BackboneError(f"{found} is no index of weights ({error}); download it again") from error


def _has_weights(folder: Path) -> bool:
    """Whether a checkpoint's weights are all there."""
    files = _weight_files(folder)
    return bool(files) and all(file.is_file() for file in files)


def _download(repository: str, revision: str | None) -> Path:
    """Download the small files, and the weights in the first format that the repository has."""
    import huggingface_hub

    for names in (SAFETENSORS, PICKLED):
        patterns = [*SMALL, *names]
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
        if any((folder / name).is_file() for name in names[:2]):
            break
    for part in _weight_files(folder):
        if not part.is_file():  # named by the index, and not as in the patterns
            huggingface_hub.hf_hub_download(repository, part.name, revision=folder.name)
    return folder
