"""What a user changed between the sweep in a folder and the requested one, in the user's terms."""

from collections.abc import Iterator, Mapping
from typing import Any

from train_head.runs.changes import changed, differing, option


def sweep_changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one text per change, such as `--sampler (there 'tpe', now 'random')`; see `train_head.sweep.sweep`."""
    return list(_changes(stored, wanted))


def _changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    found = {key: values for key, *values in differing(stored, wanted)}
    if "features" in found:
        yield "--cache (its features are others)"
    for name in ("train", "valid"):
        if f"{name}_sha256" in found:
            yield f"--{name} (its contents are others)"
        elif f"{name}_missing" in found and "features" not in found:
            yield f"which clips of --{name} the cache holds (--skip-missing)"
    for key, values in found.items():
        if key not in ("features", "space") and not key.endswith(("_sha256", "_missing")):
            yield changed(f"--{key.replace('_', '-')}", *values)
    if "space" in found:
        for key, there, now in differing(*map(_tried, found["space"])):
            yield changed(f"{key} in --space", there, now)
        common = ({**space.get("config", {}), **space.get("base", {})} for space in found["space"])
        for key, there, now in differing(*common):
            yield changed(option(key), there, now)


def _tried(space: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each setting of a space is drawn from, or its one value."""
    return dict(space.get("fixed", {})) | {key: _range(drawn) for key, drawn in space.get("drawn", {}).items()}


def _range(distribution: Mapping[str, Any]) -> str:
    """Return what a setting is drawn from, given Optuna's JSON form."""
    fields = dict(distribution.get("attributes", {}))
    if "choices" in fields:
        return f"one of {', '.join(map(str, fields['choices']))}"
    scale = ", log" if fields.get("log") else ""
    step = f", step {fields['step']}" if fields.get("step") not in (None, 1) else ""
    return f"{fields.get('low')} to {fields.get('high')}{scale}{step}"
