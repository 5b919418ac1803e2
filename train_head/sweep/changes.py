"""What a user changed between the sweep in a folder and the requested one, in the user's terms."""

from collections.abc import Iterator, Mapping
from typing import Any

from train_head.runs.changes import changed, option

_KINDS = ("drawn", "fixed", "base", "config")


def sweep_changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One text per change, such as `--sampler (there 'tpe', now 'random')`; see `train_head.sweep.sweep`."""
    return list(_changes(stored, wanted))


def _changes(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    differing = {key for key in stored.keys() | wanted.keys() if stored.get(key) != wanted.get(key)}
    if "features" in differing:
        yield "--cache (its features are others)"
    for name in ("train", "valid"):
        if f"{name}_sha256" in differing:
            yield f"--{name} (its contents are others)"
        elif f"{name}_missing" in differing and "features" not in differing:
            yield f"which clips of --{name} the cache holds (--skip-missing)"
    for key in sorted(differing):
        if key not in ("features", "space") and not key.endswith(("_sha256", "_missing")):
            yield changed(f"--{key.replace('_', '-')}", stored.get(key), wanted.get(key))
    if "space" in differing:
        yield from _of_space(stored["space"], wanted["space"])


def _of_space(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Yield changes of what is tried, then of what all trials have in common."""
    there, now = ({kind: space.get(kind, {}) for kind in _KINDS} for space in (stored, wanted))
    tried = [dict(space["fixed"]) | {k: _range(v) for k, v in space["drawn"].items()} for space in (there, now)]
    for key in sorted(tried[0].keys() | tried[1].keys()):
        if tried[0].get(key) != tried[1].get(key):
            yield changed(f"{key} in --space", tried[0].get(key), tried[1].get(key))
    common = [{**space["config"], **space["base"]} for space in (there, now)]
    for key in sorted(common[0].keys() | common[1].keys()):
        if common[0].get(key) != common[1].get(key):
            yield changed(option(key), common[0].get(key), common[1].get(key))


def _range(distribution: Mapping[str, Any]) -> str:
    """Return what a setting is drawn from, given Optuna's JSON form."""
    fields = dict(distribution.get("attributes", {}))
    if "choices" in fields:
        return f"one of {', '.join(map(str, fields['choices']))}"
    scale = ", log" if fields.get("log") else ""
    step = f", step {fields['step']}" if fields.get("step") not in (None, 1) else ""
    return f"{fields.get('low')} to {fields.get('high')}{scale}{step}"
