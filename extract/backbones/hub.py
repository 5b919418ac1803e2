"""Checkpoints of the Hugging Face hub: from its cache on this machine, or downloaded, only the files that are used."""

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
"""What is downloaded where a repository has no safetensors."""


def from_hub(name: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint, which is named by its commit.

    What is already on the disk is preferred, so that working offline costs no time-outs.

    Args:
        name: Hugging Face id, also as `ID@REVISION`.
        revision: branch, tag or commit; the hub's main branch by default.

    Raises:
        BackboneError: the hub does not give it, or it holds no weights.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    repository, _, named = name.partition("@")
    revision = revision or named or None
    try:
        here = _on_disk(repository, revision)
        if here is not None and any((here / small).is_file() for small in PROCESSORS):
            return here
        try:  # one plain request: without a network the download itself retries for 23 s
            wanted = here.name if here else revision
            url = huggingface_hub.hf_hub_url(repository, "config.json", revision=wanted)
            huggingface_hub.get_hf_file_metadata(url, timeout=10)
            folder = _snapshot(repository, wanted)
        except Exception:
            if here is None:
                raise
            return here  # without the processor's file, for which whatever downloaded it may not have asked
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
    except Exception as error:  # the hub's client raises many kinds, down to the HTTP library's
        raise BackboneError(
            f"backbone {name!r} is neither a folder nor in the local Hugging Face cache, and the hub did not "
            f"give it ({type(error).__name__}); give a local folder that holds its config.json and weights "
            "with --backbone FOLDER, or use --backbone silero, which needs no download"
        ) from error
    if _missing_weights(folder) != []:
        raise BackboneError(
            f"{name} on the hub holds none of {SAFETENSORS[0]} and {PICKLED[0]}, whole or in parts; choose another "
            "checkpoint"
        )
    return folder


def _on_disk(repository: str, revision: str | None) -> Path | None:
    """The checkpoint in the hub's local cache, whoever put it there, if its weights are all there."""
    import huggingface_hub

    config = huggingface_hub.try_to_load_from_cache(repository, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if _missing_weights(folder) == [] else None


def _snapshot(repository: str, revision: str | None) -> Path:
    """The small files and the weights, in the first format that is there."""
    import huggingface_hub

    folder = _download(repository, revision, (*SMALL, *SAFETENSORS))
    if _index(folder, SAFETENSORS) is None:
        folder = _download(repository, revision, (*SMALL, *PICKLED))
    for shard in _missing_weights(folder) or ():  # under a name of its own
        huggingface_hub.hf_hub_download(repository, shard, revision=folder.name)
    return folder


def _download(repository: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def _index(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The file that holds the weights in this format, or names those that do."""
    return next((folder / name for name in names[:2] if (folder / name).is_file()), None)


def _missing_weights(folder: Path) -> list[str] | None:
    """Files that an index names and that are not there; None where there are no weights at all."""
    found = _index(folder, SAFETENSORS) or _index(folder, PICKLED)
    if found is None:
        return None
    if found.suffix != ".json":
        return []
    try:
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise BackboneError(f"{found} is no index of weights ({error}); download it again") from error
    return [shard for shard in shards if not (folder / shard).is_file()]
