"""`emi demo-data`: synthetic clips in the layout of Hume-Vidmimic2."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "Example: emi demo-data artifacts/demo --seed 1"


def demo_data(
    folder: Annotated[Path, typer.Argument(help="Where to make the data; created.")],
    clips: Annotated[
        int | None, typer.Option(help="Number of clips [default: sized for a one-minute training].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other clips.")] = 0,
) -> None:
    """Speak clips with espeak-ng: synthetic speech whose prosody follows six made-up intensities."""
    from emi.console import Progress
    from emi.demo import DEFAULT_CLIPS, make_demo

    with Progress(None, "speaking") as progress:
        summary = make_demo(
            folder,
            clips=clips or DEFAULT_CLIPS,
            seed=seed,
            on_progress=lambda done, total: progress(done, total, 0.0),
        )
    typer.echo(
        f"{summary.folder}: {summary.clips} clips, {summary.seconds / 60:.1f} min of synthetic speech, "
        f"{summary.train} to train and {summary.valid} to validate on other voices"
    )
