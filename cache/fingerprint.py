"""What a cached number depends on, and how two such descriptions differ."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Fingerprint = Mapping[str, Any]
"""JSON-able mapping that names everything that changes a stored number (DESIGN: backbone, weights, layer, …)."""


def canonical(fingerprint: Fingerprint) -> str:
    """Serialise to the one JSON text that equal fingerprints share (sorted keys, no spaces)."""
    return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(fingerprint: Fingerprint) -> str:
    """SHA-256 of what is compared, as 64 hex digits; each segment carries it as proof of what made it."""
    return hashlib.sha256(canonical(_compared(fingerprint)).encode()).hexdigest()


def differences(stored: Fingerprint, wanted: Fingerprint) -> list[str]:
    """Name the fields that differ, as `field (stored A, wanted B)`, in alphabetical order; empty when equal.

    A field inside another is named with a dot: `derived.pool`.
    """
    # Fingerprints without the field `decoder` are older than the second decoder.
    a, b = ({"decoder": 1} | flattened(_compared(fingerprint)) for fingerprint in (stored, wanted))
    fields = {key: (a.get(key, "absent"), b.get(key, "absent")) for key in sorted(a.keys() | b.keys())}
    return [
        f"{key} (stored {_shown(one)}, wanted {_shown(other)})" for key, (one, other) in fields.items() if one != other
    ]


def _compared(fingerprint: Fingerprint) -> dict[str, Any]:
    """Leave out the backbone's name where its weights are hashed: a moved or renamed folder is the same model."""
    return {k: v for k, v in fingerprint.items() if k != "backbone" or "weights_sha256" not in fingerprint}


def flattened(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields inside others brought to the top, named with dots: `derived.pool`."""
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        inner = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{text[:12]}…" if len(text) == 64 else text
