"""What a user changed between the run in a folder and the one that is asked for, in the user's own terms.

A change has consequences: another head has other options, another backbone other features of another size. Only the
change is named, by the option that makes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cache.fingerprint import differences, flattened
from cache.settings import option_names
from train_head.data.names import UNNAMED
from train_head.heads import HEADS, head_options
from train_head.heads.fusions import DEFAULT_FUSION, fusion_options
from train_head.training.settings import TrainSettings
from train_head.training.stream_settings import StreamSettings, own_settings

SHOWN = 8
ABSENT = "none"
"""How a value that is not there is shown."""

OPTIONS = frozenset(option_names(TrainSettings)) | set(
    (
        "hidden layers dropout global_vector output freeze unfreeze_every backbone_lr layer_decay lora spec_augment "
        "layerdrop backbone_dropout max_seconds track allow_truncated fps face min_face detect_every crop"
    ).split()
)
"""Settings that have an option of their own on the command line, those of heads and of fine-tuning among them; others
are given by --set."""
NOT_COMPARED = frozenset(
    (
        "data.caches data.media data.train data.valid data.test features.source features.revision backbone.source "
        "backbone.revision backbone.name "
        "finetune.batch_seconds finetune.batch_crops finetune.videos finetune.checkpointing finetune.fsdp "
        "finetune.processes finetune.remember finetune.save_minutes"
    ).split()
)
"""Places, and what decides memory and time."""
RECORDS = frozenset({"versions", "licence"})
"""Tables that are kept and not compared."""
_OF_FACES = ("fps", "face", "min_face", "detect_every", "crop")
_SAID_OF_THE_SOUND = frozenset({"decoder", "max_seconds", "track", "allow_truncated", *_OF_FACES})
"""Of a backbone's fingerprint: settings with options of their own, and what the hash of the decoded clips covers."""
_DECODED = (
    ("audio_sha256", "the sound of its clips is other than it was"),
    ("crops_sha256", "the faces of its clips, or their times, are others"),
)
_FOLLOWS_FEATURES = frozenset({"dim", "vad_names", "hop_seconds", "transform_sha256"})


class Changes:
    """The differences between two runs.

    Args:
        stored: config.toml of the run that is there.
        wanted: that of the run that is asked for.

    Attributes:
        named: one text per change, such as `--lr (there 0.001, now 0.01)`.
        back: options that ask for the run that is there, as far as options can.
    """

    def __init__(self, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        configs = _plain(stored), _plain(wanted)
        kinds = (_protocol, _settings, _labels, _features, _backbone, _rest)
        found = [change for kind in kinds for change in kind(*configs)]
        self.named = [text for text, _ in found]
        self.back = [back for _, back in found if back]

    def __bool__(self) -> bool:
        return bool(self.named)

    def __str__(self) -> str:
        more = len(self.named) - SHOWN
        return "; ".join(self.named[:SHOWN]) + (f"; and {more} more" if more > 0 else "")

    @property
    def advice(self) -> str:
        """What to do next."""
        if len(self.back) == len(self.named):
            return f"To resume that run, give {' '.join(self.back)}; for this one, choose a new --out"
        return "Choose a new --out, or remove that folder"


_Found = Iterator[tuple[str, str]]
"""Texts of changes, each with the option that takes it back, or nothing."""


def changed(name: str, there: object, now: object) -> str:
    """`--lr (there 0.001, now 0.01)`."""
    return f"{name} (there {_shown(there)}, now {_shown(now)})"


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the keys whose values differ, in order, each with both values; None stands for an absent one."""
    for key in sorted(one.keys() | other.keys()):
        if one.get(key) != other.get(key):
            yield key, one.get(key), other.get(key)


def option(key: str) -> str:
    """How a setting is given: `--batch-size`, or `--set ema`."""
    return f"--{key.replace('_', '-')}" if key in OPTIONS else f"--set {key}"


def _protocol(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    one, other = stored.get("protocol", {}), wanted.get("protocol", {})
    if one.get("kind") != other.get("kind"):
        yield changed("what is trained", _kind(one), _kind(other)), ""
        return
    for key, there, now in differing(one, other):
        if key != "clips_sha256":
            yield changed(_PROTOCOL.get(key, key), there, now), f"--folds {there}" if key == "folds" and there else ""
        elif one.get("folds") == other.get("folds") and not _files_changed(stored, wanted):
            yield "which clips are in the fold", ""


_PROTOCOL = {"folds": "--folds", "members": "the runs", "weights": "--weights", "number": "its number"}


def _kind(protocol: Mapping[str, Any]) -> str:
    kinds = {
        "seeds": "runs of several --seeds",
        "folds": "runs of several --folds",
        "seed": "a run of several seeds",
        "fold": "a run of several folds",
        "all": "a run on all clips",
        "ensemble": "an ensemble of runs",
    }
    kind = str(protocol.get("kind", "one run"))
    return kinds.get(kind, kind)


def _settings(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    tuned = "finetune" in stored and "finetune" in wanted  # one of them alone is said elsewhere
    one, other = (_own_settings(config, tuned=tuned) for config in (stored, wanted))
    for key, there, now in sorted(differing(one, other), key=lambda found: found[0] != "head"):
        yield changed(option(key), there, now), _given(key, there)
    yield from _head_options(stored, wanted)


def _own_settings(config: Mapping[str, Any], *, tuned: bool) -> dict[str, Any]:
    """Return settings at the top, of augmentation and of fine-tuning; a setting that is absent has its default."""
    defaults = TrainSettings().to_toml() if "head" in config else {}
    plain = {key: value for key, value in (defaults | dict(config)).items() if not isinstance(value, Mapping)}
    plain |= _of_streams(config)
    augment = defaults.get("augment", {}) | config.get("augment", {})
    tuning = config["finetune"] if tuned else {}
    return plain | augment | {key: value for key, value in tuning.items() if f"finetune.{key}" not in NOT_COMPARED}


def _of_streams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the fusion, and those of streams that differ from all, as given: `face.hidden`."""
    given = {"name": DEFAULT_FUSION} | config.get("fusion", {})
    fusion = given | asdict(
        fusion_options(given["name"], {key: value for key, value in given.items() if key != "name"})
    )
    found = {"fusion" if key == "name" else f"fusion.{key}": value for key, value in fusion.items()}
    for name, table in config.get("streams", {}).items():  # older runs recorded all settings of every stream
        own = own_settings(name, table, _shared(config))
        options = own.pop(own.get("head", config["head"]), {})
        found |= {f"{name}.{key}": value for key, value in (own | options).items()}
    return found


def _shared(config: Mapping[str, Any]) -> StreamSettings:
    head, standardise = config["head"], config.get("standardise", False)
    return StreamSettings(
        head=head, head_options=asdict(head_options(head, config.get(head, {}))), standardise=standardise
    )


def _head_options(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    """Options of the head; of two different heads only those that both have, and that were given."""
    heads = str(stored.get("head")), str(wanted.get("head"))
    if heads[0] not in HEADS or heads[1] not in HEADS:
        return
    (there, usual), (now, usual_now) = (
        (asdict(head_options(head, {})) | dict(config.get(head, {})), asdict(head_options(head, {})))
        for head, config in zip(heads, (stored, wanted), strict=True)
    )
    for key in sorted(there.keys() & now.keys()):
        defaults = heads[0] != heads[1] and (there[key], now[key]) == (usual[key], usual_now[key])
        if there[key] != now[key] and not defaults:
            yield changed(option(key), there[key], now[key]), _given(key, there[key])


def _labels(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    one, other = stored.get("data", {}), wanted.get("data", {})
    for name in ("train", "valid", "test"):
        digests = [data.get(f"{name}_sha256") for data in (one, other)]
        if digests[0] != digests[1]:
            yield _file(f"--{name}", one.get(name), other.get(name)), ""
        elif one.get(f"{name}_clips_sha256") != other.get(f"{name}_clips_sha256"):
            yield f"which clips of --{name} can be used (--skip-missing, --require)", ""
    for key in ("rater", "group_by", "require", "ids"):
        there, now, typed = one.get(key), other.get(key), f"--{key.replace('_', '-')}"
        if there != now:
            given = there if isinstance(there, list) else [] if there is None else [there]
            yield changed(typed, there, now), " ".join(f"{typed} {value!r}" for value in given)
    alike = one.get("group_by") == other.get("group_by") and not _files_changed(stored, wanted)
    if alike and one.get("targets") != other.get("targets"):
        yield changed("--targets", one.get("targets"), other.get("targets")), ""


def _file(name: str, there: str | None, now: str | None) -> str:
    if there == now:
        return f"{name} ({now} has other contents than it had)"
    if there is None or now is None:
        return changed(name, there, now)
    return f"{changed(name, there, now)[:-1]}, with other contents)"


def _files_changed(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    one, other = stored.get("data", {}), wanted.get("data", {})
    return any(
        one.get(f"{name}{of}") != other.get(f"{name}{of}")
        for name in ("train", "valid", "test")
        for of in ("_sha256", "_clips_sha256")
    )


def _features(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    tuned = ["backbone" in side for side in (stored, wanted)]
    if tuned[0] != tuned[1]:
        yield changed("what is trained", *("a backbone too" if one else "a head" for one in tuned)), ""
        return
    streams, others = (features_by_stream(side.get("features", {})) for side in (stored, wanted))
    if streams.keys() != others.keys():
        yield changed("--cache: streams", *(", ".join(sorted(side)) or None for side in (streams, others))), ""
        return
    for name in streams:
        places = [_places(config, name) for config in (stored, wanted)]
        yield from _one_stream(streams[name], others[name], places)


def features_by_stream(features: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tables of a run's `features` by stream; a run of one unnamed stream has its values there."""
    return features if all(isinstance(table, Mapping) for table in features.values()) else {UNNAMED: features}


def _places(config: Mapping[str, Any], name: str) -> str:
    caches = config.get("data", {}).get("caches", [])
    return ", ".join(f"{name}={place}" for place in caches[name]) if isinstance(caches, Mapping) else ", ".join(caches)


def _one_stream(one: Mapping[str, Any], other: Mapping[str, Any], places: Sequence[str]) -> _Found:
    """Yield how the features of one stream differ."""
    differing = differences(one["fingerprint"], other["fingerprint"])
    if "weights_sha256" in one["fingerprint"].keys() & other["fingerprint"].keys():
        differing = _by_backbone(one["fingerprint"], other["fingerprint"], differing)
    rest = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    if differing:
        caches = f"{places[0]} there, {places[1]} now" if places[0] != places[1] else places[1]
        yield f"--cache ({caches}: its features are others, {', '.join(differing)})", ""
    elif any(key in _FOLLOWS_FEATURES for key in rest):
        yield f"--cache (its features are others: {', '.join(rest)})", ""


def _by_backbone(one: Mapping[str, Any], other: Mapping[str, Any], differing: list[str]) -> list[str]:
    """The same with the backbone's name instead of hashes that follow from it."""
    if one["weights_sha256"] == other["weights_sha256"]:
        return differing
    names = [str(side.get("backbone")) for side in (one, other)]
    what = f"backbone (stored {names[0]}, wanted {names[1]})" if names[0] != names[1] else f"the weights of {names[0]}"
    follow = ("weights_sha256", "config_sha256", "layer", "normalisation")
    return [what, *(text for text in differing if not text.startswith(follow))]


def _backbone(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    one, other = stored.get("backbone"), wanted.get("backbone")
    if one is None or other is None:
        return
    prints = [side.get("fingerprint", {}) for side in (one, other)]
    differing = {key for key in prints[0].keys() | prints[1].keys() if prints[0].get(key) != prints[1].get(key)}
    moved = bool(differing & {"weights_sha256", "config_sha256"})
    if moved and one.get("source") != other.get("source"):
        yield changed("--backbone", one.get("source"), other.get("source")), f"--backbone {one.get('source')}"
    elif moved:
        yield f"--backbone (the weights of {other.get('source')} are others)", ""
    elif rest := sorted(differing - _SAID_OF_THE_SOUND):
        yield f"--backbone ({', '.join(changed(key, *(side.get(key) for side in prints)) for key in rest)})", ""
    if one.get("head_sha256") != other.get("head_sha256"):
        given = ["a head" if side.get("head_sha256") else "none" for side in (one, other)]
        yield (changed("--init-head", *given) if given[0] != given[1] else "--init-head (its weights are others)"), ""
    keys = ("max_seconds", "audio_dtype", "track", "allow_truncated", *_OF_FACES)
    cut = [[config.get("finetune", {}).get(key) for key in keys] for config in (stored, wanted)]
    for key, what in _DECODED:
        hashes = [config.get("data", {}).get(key) for config in (stored, wanted)]
        if hashes[0] != hashes[1] and cut[0] == cut[1] and not _files_changed(stored, wanted):
            yield f"--media ({what})", ""


def _rest(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> _Found:
    """Yield what no other function compares, by its place in config.toml."""
    for key, there, now in differing(_unknown(stored), _unknown(wanted)):
        yield changed(key, there, now), ""


def _unknown(config: Mapping[str, Any]) -> dict[str, Any]:
    tables = {"augment", "streams", "fusion", "finetune", "features", "backbone", "protocol", *HEADS, *RECORDS}
    known = {f"{name}{of}" for name in ("train", "valid", "test") for of in ("", "_sha256", "_clips_sha256")}
    known |= {"caches", "media", "targets", "rater", "group_by", "require", "ids", "audio_sha256", "crops_sha256"}
    found = {key: value for key, value in config.items() if isinstance(value, Mapping) and key not in tables}
    found["data"] = {key: value for key, value in found.get("data", {}).items() if key not in known}
    return {key: value for key, value in flattened(found).items() if value != {}}


def _given(key: str, value: object) -> str:
    name = option(key)
    if value is None:
        return ""
    if not name.startswith("--set"):
        if isinstance(value, bool):
            return name if value else f"--no-{name[2:]}"
        return f"{name} {_quoted(value)}"
    return f"{name}={_quoted(value) if isinstance(value, str) else json.dumps(value)}"


def _quoted(value: object) -> str:
    text = ",".join(f"{part:g}" for part in value) if isinstance(value, list) else str(value)
    return f'"{text}"' if " " in text or "*" in text else text


def _shown(value: object) -> str:
    return ABSENT if value is None else str(value) if not isinstance(value, str) else repr(value)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """As TOML gives it back."""
    found: dict[str, Any] = json.loads(json.dumps(config))
    return found
