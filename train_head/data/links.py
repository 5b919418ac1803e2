"""Clips of a stream whose ids are not those of the labels: several labelled clips may share one source."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from cache.format import Array
from cache.gather import Loaded
from cache.reader import FeatureCache
from train_head.errors import TrainSettingsError

PRESETS = {"aff-wild2": r"(.+?)(?:_left|_right)?"}
"""Patterns by name, of streams of sound: two people in one video of Aff-Wild2 share its sound."""
GROUPS = {name: f"^{pattern}$" for name, pattern in PRESETS.items()}
"""Regular expressions that find what clips belong to, for a preset: the video."""


class LinkedCache(FeatureCache):
    """A cache whose clips are asked for by the ids of the labels.

    Args:
        store: the cache.
        pattern: its first group, where it matches a whole id, is the id of the clip in the cache.
    """

    def __init__(self, store: FeatureCache, pattern: re.Pattern[str]) -> None:
        self.__dict__.update(store.__getstate__())  # its index, and file handles of its own
        self._pattern = pattern

    def own_id(self, clip_id: object) -> str:
        """Return the id by which the cache has a clip of the labels."""
        found = self._pattern.fullmatch(str(clip_id))
        return found[1] if found is not None else str(clip_id)

    def __contains__(self, clip_id: object) -> bool:
        return super().__contains__(self.own_id(clip_id))

    def checksum(self, clip_id: str) -> int:
        """See `FeatureCache`."""
        return super().checksum(self.own_id(clip_id))

    def offsets(self, ids: Sequence[str]) -> Any:
        """See `FeatureCache`."""
        return super().offsets([self.own_id(clip_id) for clip_id in ids])

    def load_all(self, ids: Sequence[str], out: Array | None = None) -> Loaded:
        """See `FeatureCache`."""
        return super().load_all([self.own_id(clip_id) for clip_id in ids], out)


def read_links(given: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """Read what `--ids` is given: `NAME=REGEX` for one stream, or a preset, which is for the streams of sound.

    Returns:
        Patterns by stream; that of a preset under "".

    Raises:
        TrainSettingsError: a pattern is none, or has not one group.
    """
    found: dict[str, re.Pattern[str]] = {}
    for text in given:
        name, equals, pattern = text.partition("=")
        if not equals and text not in PRESETS:
            raise TrainSettingsError(f"--ids takes NAME=REGEX or one of {', '.join(PRESETS)}, got {text!r}")
        try:
            compiled = re.compile(pattern if equals else PRESETS[text])
        except re.error as error:
            raise TrainSettingsError(f"--ids {text}: {pattern!r} is no regular expression ({error})") from error
        if compiled.groups != 1:
            raise TrainSettingsError(f"--ids {text}: one group in parentheses gives the id, and {pattern!r} has others")
        found[name if equals else ""] = compiled
    return found


def linked(
    stores: Mapping[str, Sequence[FeatureCache]], links: Mapping[str, re.Pattern[str]]
) -> dict[str, list[FeatureCache]]:
    """Return the caches of every stream, asked for by the ids of the labels.

    Raises:
        TrainSettingsError: a stream is named that is not there.
    """
    for name in links:
        if name and name not in stores:
            raise TrainSettingsError(f"--ids {name}=…: the streams are {', '.join(stores)}")
    found = {}
    for name, caches in stores.items():
        pattern = links.get(name) or (links.get("") if caches[0].header.modality == "audio" else None)
        found[name] = [LinkedCache(store, pattern) if pattern is not None else store for store in caches]
    return found
