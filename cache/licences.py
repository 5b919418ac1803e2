"""The licence of a backbone's weights: kept beside the fingerprint of a cache, for it changes no number.

What is made with weights whose licence forbids commercial use is bound by it too: features, heads, predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cache.format import Header

LICENCE = "licence"
"""Key in a cache's provenance, and the table of a run's config.toml."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Of some weights.

    Attributes:
        name: as its owner writes it, or "unknown".
        commercial_use: "yes", "no" or "unknown".
    """

    name: str = "unknown"
    commercial_use: str = "unknown"

    def __str__(self) -> str:
        return f"licence {self.name}, commercial use: {self.commercial_use}"

    def to_dict(self) -> dict[str, str]:
        """For a header or a config.toml."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: object) -> "Licence":
        """Read it back; what is no licence is an unknown one."""
        if not isinstance(stored, Mapping):
            return UNKNOWN
        return cls(**{key: str(stored.get(key, "unknown")) for key in ("name", "commercial_use")})


UNKNOWN = Licence()
KNOWN: Mapping[str, Licence] = {
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": Licence(name="CC BY-NC-SA 4.0", commercial_use="no"),
    "silero": Licence(name="MIT", commercial_use="yes"),
    "mtcnn": Licence(name="MIT", commercial_use="yes"),
    "mfcc": Licence(name="MIT", commercial_use="yes"),
}
"""By name or Hugging Face id; the first from its model card, silero and mtcnn from their packages. mfcc has no weights,
and its licence is that of emi."""

_PERMISSIVE = ("apache-", "mit", "bsd", "cc0", "cc-by-", "isc", "unlicense", "gpl-", "lgpl-", "agpl-", "mpl-", "wtfpl")
"""Beginnings of the identifiers of licences that allow commercial use, where these do not say otherwise."""


def known_licence(backbone: str) -> Licence | None:
    """The licence of a backbone by its name, its id, or the name of a folder that holds a copy of it."""
    if backbone in KNOWN:
        return KNOWN[backbone]
    last = backbone.rstrip("/").rpartition("/")[2]  # a folder called silero need not hold it
    return next((found for name, found in KNOWN.items() if "/" in name and name.endswith(f"/{last}")), None)


def licence_from_card(card: Mapping[str, Any]) -> Licence:
    """From the front matter of a Hugging Face model card: `license`, or `license_name` where that is "other"."""
    stated = card.get("license")
    names = [str(name) for name in (stated if isinstance(stated, list) else [stated]) if name]
    if names == ["other"] and card.get("license_name"):
        names = [str(card["license_name"])]
    if not names:
        return UNKNOWN
    return all_of([Licence(name=_written(name), commercial_use=_commercial_use(name.lower())) for name in names])


def all_of(licences: Sequence[Licence]) -> Licence:
    """What binds something that was made with several weights: the strictest use, all names."""
    uses = [licence.commercial_use for licence in licences]
    use = next((use for use in ("no", "unknown") if use in uses), "yes")
    return Licence(name=", ".join(dict.fromkeys(licence.name for licence in licences)), commercial_use=use)


def licence_of(header: Header) -> Licence:
    """The licence of the weights that a cache was made with; older caches do not say, but for known backbones."""
    stored = header.provenance.get(LICENCE)
    if stored is not None:
        return Licence.from_dict(stored)
    if "weights_sha256" not in header.fingerprint:  # features that others computed
        return UNKNOWN
    return known_licence(str(header.provenance.get("source", ""))) or UNKNOWN


def licence_of_run(config: Mapping[str, Any]) -> Licence:
    """The licence that a run records; those of older versions do not say, but for known backbones."""
    if LICENCE in config:
        return Licence.from_dict(config[LICENCE])
    sources = [config[name].get("source", "") for name in ("features", "backbone") if name in config]
    return next((found for source in sources if (found := known_licence(str(source)))), UNKNOWN)


def _commercial_use(identifier: str) -> str:
    words = set(identifier.replace(" ", "-").split("-"))
    if words & {"nc", "noncommercial", "research"} or "non-commercial" in identifier:
        return "no"
    return "yes" if identifier.startswith(_PERMISSIVE) else "unknown"


def _written(identifier: str) -> str:
    """`cc-by-nc-sa-4.0` as CC BY-NC-SA 4.0, which its owner calls it; others as they stand."""
    if not identifier.lower().startswith("cc-by"):
        return {"mit": "MIT", "apache-2.0": "Apache-2.0"}.get(identifier, identifier)
    words, _, number = identifier.upper().rpartition("-")
    return f"CC {words[3:]} {number}"
