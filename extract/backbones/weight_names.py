"""Find the parts of a checkpoint by the names of its weights: the encoder, a supported head, other heads."""

import pickletools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

VAD = ("arousal", "dominance", "valence")
"""The outputs of a regression head, in the order in which they are stored."""
ENCODER = ("feature_extractor.conv_layers.", "feature_projection.", "encoder.", "masked_spec_embed")
"""Starts of the names of an encoder's weights, after the prefix of the model that contains it."""
_MARK = re.compile(
    r"^(|.*?\.)(?:feature_extractor\.conv_layers\.\d|feature_projection\.|encoder\.(?:layers\.\d|pos_conv_embed\.))"
)
_HEAD = re.compile(r"^(|.+\.)(dense|out_proj|output)\.(?:weight|bias)$")
# Weights that change what a head is given: it is not the last hidden state then.
_BEFORE_HEAD = re.compile(r"(?:^|\.)(?:projector\.|layer_weights$)")
_WEIGHT = re.compile(r"^(.+?)(?:\.\w+)*\.(?:weight|bias|weight_g|weight_v)$|^layer_weights$")
# In a file of torch's oldest format: magic number, protocol, system, weights, keys of the storages.
_PICKLES = 5


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of a checkpoint.

    Attributes:
        prefix: of the names of the encoder's weights: "", "wav2vec2.", "model.hubert.".
        head: prefix of a regression head, "classifier."; None where no head is supported.
        output: its last layer: "out_proj" (audEERING), or "output".
        order: rows of that layer in the order of `VAD`.
        others: names of unsupported heads.
    """

    prefix: str
    head: str | None = None
    output: str = "out_proj"
    order: tuple[int, ...] = (0, 1, 2)
    others: tuple[str, ...] = ()

    def in_encoder(self, name: str) -> bool:
        """Whether a weight belongs to the encoder."""
        return name.startswith(self.prefix) and name.removeprefix(self.prefix).startswith(ENCODER)


def layout_of(names: Iterable[str], labels: Sequence[str]) -> Layout:
    """Find the parts of a checkpoint.

    A head is supported if its three outputs are called arousal, dominance and valence, in any order and case, and if it
    consists of dense, tanh and linear only: `dense` and `out_proj`, or `dense` and `output`.

    Args:
        names: of its weights.
        labels: of its outputs, in the order of the configuration.
    """
    names = sorted(names)
    marks = Counter(match[1] for name in names if (match := _MARK.match(name)))
    prefix = min(marks, key=lambda p: (-marks[p], len(p)), default="")
    encoder = Layout(prefix=prefix)
    rest = [name for name in names if not encoder.in_encoder(name)]
    head, output = _head_of(rest) if sorted(label.lower() for label in labels) == sorted(VAD) else (None, "")
    if head is not None:
        rest = [name for name in rest if not name.startswith((f"{head}dense.", f"{head}{output}."))]
    return Layout(
        prefix=prefix,
        head=head,
        output=output or "out_proj",
        order=tuple([label.lower() for label in labels].index(name) for name in VAD) if head is not None else (0, 1, 2),
        others=tuple(dict.fromkeys(match[1] or name for name in rest if (match := _WEIGHT.match(name)))),
    )


def _head_of(names: Sequence[str]) -> tuple[str | None, str]:
    """Return the prefix of the supported head and its last layer. Of several heads, audEERING's is chosen by name."""
    layers: dict[str, set[str]] = {}
    for name in names:
        if match := _HEAD.match(name):
            layers.setdefault(match[1], set()).add(match[2])
    heads = {
        prefix: (found - {"dense"}).pop()
        for prefix, found in layers.items()
        if "dense" in found and len(found) == 2 and all(_HEAD.match(n) for n in names if n.startswith(prefix))
    }
    if any(_BEFORE_HEAD.search(name) for name in names):
        return None, ""
    if "classifier." in heads:
        return "classifier.", heads["classifier."]
    return next(iter(heads.items())) if len(heads) == 1 else (None, "")


def names_in(path: Path) -> set[str]:
    """Read the names of the weights in a file, without torch and without running a pickle.

    Of a pickle, all strings are returned.

    Raises:
        Exception: it is damaged; readers of weights raise many types.
    """
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return set(file.keys())
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {text for _ in range(_PICKLES) for text in _strings(file)}
    with zipfile.ZipFile(path) as archive:
        member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if member is None:
            raise ValueError(f"{path.name} holds no data.pkl")
        return set(_strings(archive.read(member)))


def _strings(pickled) -> Iterator[str]:  # type: ignore[no-untyped-def]
    yield from (str(argument) for code, argument, _ in pickletools.genops(pickled) if "UNICODE" in code.name)
