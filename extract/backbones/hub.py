"""Checkpoints of the Hugging Face hub: from the local cache, or downloaded, only the files that are used."""

import errno
import json
from pathlib import Path

from extract.errors import BackboneError

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
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")
"""Downloaded where a repository has no safetensors."""
WEIGHTS = (*SAFETENSORS[:2], *PICKLED[:2])
"""Files that hold the weights or name their parts, in the order in which transformers prefers them."""


def from_hub(name: str, revision: str | None = None) -> Path:
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
        local = _in_local_cache(repository, revision)
        if local is not None and any((local / file).is_file() for file in PROCESSORS):
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
    if not has_weights(folder):
        raise BackboneError(
            f"{name} on the hub holds none of {SAFETENSORS[0]} and {PICKLED[0]}, whole or in parts; choose another "
            "checkpoint"
        )
    return folder


def weight_files(folder: Path) -> list[Path]:
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


def has_weights(folder: Path) -> bool:
    """Whether a checkpoint's weights are all there."""
    files = weight_files(folder)
    return bool(files) and all(file.is_file() for file in files)


def _in_local_cache(repository: str, revision: str | None) -> Path | None:
    """Return the folder in the hub's local cache if all weights are there."""
    import huggingface_hub

    config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and has_weights(folder) else None


def _download(repository: str, revision: str | None) -> Path:
    """Download the small files, and the weights in the first format that the repository has."""
    import huggingface_hub

    for names in (SAFETENSORS, PICKLED):
        patterns = [*SMALL, *names]
        folder = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
        if any((folder / name).is_file() for name in names[:2]):
            break
    for part in weight_files(folder):
        if not part.is_file():  # named by the index, and not as in the patterns
            huggingface_hub.hf_hub_download(repository, part.name, revision=folder.name)
    return folder
