"""`emi demo-data`: synthetic clips in the layout of Hume-Vidmimic2, or of Aff-Wild2."""

from pathlib import Path
from typing import Annotated

import typer

from emi.cli import options
from emi.demo.settings import DemoSettings


@options.takes(DemoSettings)
def demo_data(folder: Annotated[Path, typer.Argument(help="Folder to create.")], *, given: options.Given) -> None:
    """Make videos of drawn faces with synthetic speech, whose expression and prosody follow made-up labels.

    Faces and voices of the validation split do not occur in the training split.

    Example: emi demo-data artifacts/demo --seed 1
    """
    from emi.console import Progress
    from emi.demo.make import make_demo

    with Progress("making") as progress:
        made = make_demo(folder, **given, on_progress=lambda done, total: progress(done, total, 0.0))
    people = "faces and voices" if made.videos else "voices"
    splits = f"{made.train} to train and {made.valid} to validate on other {people}"
    typer.echo(f"{made.folder}: {made.clips} clips, {made.seconds / 60:.1f} min of synthetic speech, {splits}")
