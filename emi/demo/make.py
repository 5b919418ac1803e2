"""Make a folder of demo data in the exact layout of Hume-Vidmimic2, or of Aff-Wild2."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from emi.demo.espeak import Speaker
from emi.demo.layout import DemoSummary, built_beside, find_demo, put_in_place, write_settings
from emi.demo.settings import DemoSettings

RECIPE = 2  # raise it whenever the same settings give other bytes


def make_demo(folder: Path, *, on_progress: Callable[[int, int], None] | None = None, **settings: Any) -> DemoSummary:
    """Make a data set that anyone may have, in the layout of one that few may, so that every command can be tried.

    The same settings give the same bytes. The folder appears whole or not at all: it is built beside its place
    under a temporary name. Where the same demo is already, nothing is done.

    Args:
        folder: to create; an empty folder may be there.
        on_progress: called with (clips done, clips in all) after each clip.
        **settings: fields of `emi.demo.settings.DemoSettings` (clips, seed, faces, kind).

    Returns:
        Counts of what the folder holds.

    Raises:
        DemoSettingsError: if a setting is out of range.
        DemoFolderError: if ``folder`` holds anything but the same demo.
        DemoDependencyError: if ``espeakng-loader`` is not installed.
    """
    folder, chosen = Path(folder), DemoSettings(**settings)
    recorded = {"recipe": RECIPE, **asdict(chosen), "clips": chosen.count}
    if (found := find_demo(folder, recorded)) is not None:
        return found
    if chosen.kind == "va":
        from emi.demo.aff_wild2.write import write_videos as write  # takes torch
    else:
        from emi.demo.mimicry import write_clips as write
    with built_beside(folder) as building, Speaker(seed=chosen.seed) as speaker:
        summary = replace(write(building, chosen, speaker, on_progress), folder=folder)
        write_settings(building, summary, recorded)
        return put_in_place(building, folder, recorded) or summary
