"""`emi demo-data`: synthetic clips in the layout of Hume-Vidmimic2."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.demo.settings import DemoSettings


@options.takes(DemoSettings)
def demo_data(folder: Annotated[Path, typer.Argument(help="Folder to create.")], *, given: options.Given) -> None:
    """Make clips of synthetic speech with espeak-ng, whose prosody follows six made-up intensities.

    Example: emi demo-data artifacts/demo --seed 1
    """
    from emi.console import Progress
    from emi.demo.make import make_demo

    with Progress("speaking") as progress:
        made = make_demo(folder, **given, on_progress=lambda done, total: progress(done, total, 0.0))
    minutes, splits = made.seconds / 60, f"{made.train} to train and {made.valid} to validate on other voices"
    typer.echo(f"{made.folder}: {made.clips} clips, {minutes:.1f} min of synthetic speech, {splits}")
