"""What lies where in a checkpoint, by the names of its weights: the encoder, a head that is understood, other heads."""

import json
import pickletools
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

VAD = ("arousal", "dominance", "valence")
"""The outputs of a regression head, in the order in which they are stored."""
ENCODER = ("feature_extractor.conv_layers.", "feature_projection.", "encoder.", "masked_spec_embed")
"""How the weights of an encoder start, behind the prefix that the model around it gives them."""
_MARK = re.compile(
    r"^(|.*?\.)(?:feature_extractor\.conv_layers\.\d|feature_projection\.|encoder\.(?:layers\.\d|pos_conv_embed\.))"
)
_HEAD = re.compile(r"^(|.+\.)(dense|out_proj|output)\.(?:weight|bias)$")
_BEFORE_HEAD = re.compile(r"(?:^|\.)(?:projector\.|layer_weights$)")
"""Weights that change what a head is given: it is not the last hidden state then."""
_WEIGHT = re.compile(r"^(.+?)(?:\.\w+)*\.(?:weight|bias|weight_g|weight_v)$|^layer_weights$")
_PICKLES = 5
"""In a file of torch's oldest format: magic number, protocol, system, weights, keys of the storages."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The parts of a checkpoint.

    Attributes:
        prefix: before the names of the encoder's weights: "", "wav2vec2.", "model.hubert.".
        head: before those of a regression head, "classifier."; None where there is none that is understood.
        output: its last layer: "out_proj" (audEERING), or "output".
        order: rows of that layer in the order of `VAD`.
        others: heads of other kinds, by name.
    """

    prefix: str
    head: str | None = None
    output: str = "out_proj"
    order: tuple[int, ...] = (0, 1, 2)
    others: tuple[str, ...] = ()

    def in_encoder(self, name: str) -> bool:
        """Whether a weight is one of the encoder's."""
        return name.startswith(self.prefix) and name.removeprefix(self.prefix).startswith(ENCODER)


def layout_of(names: Iterable[str], labels: Sequence[str]) -> Layout:
    """Find the parts of a checkpoint.

    A head is understood where its three outputs are called arousal, dominance and valence, in any order and case, and
    it is dense, tanh, linear, and nothing else: `dense` and `out_proj`, or `dense` and `output`.

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
    """The prefix of the one head of a known layout, and its last layer; audEERING's name where there are several."""
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
    """The names of the weights in a file, without torch and without running a pickle; of a pickle other strings too.

    Raises:
        ValueError, OSError: it is damaged.
    """
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            header = file.read(min(size, path.stat().st_size))
        return set(json.loads(header)) - {"__metadata__"}
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
