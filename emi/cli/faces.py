"""`emi faces`: videos into crops of faces, a table and a contact sheet."""

from pathlib import Path
from typing import Annotated

import typer

from cache.settings import take
from emi.cli import options
from emi.cli.messages import tell_missing, tell_others, tell_some
from extract.settings import ExtractSettings

USED = "fps face min_face detect_every crop max_seconds media_root workers allow_truncated"


@options.takes((ExtractSettings, USED))
def faces(
    media: Annotated[
        str, typer.Argument(help="Folder of videos (searched recursively), CSV with a Filename column, or text list.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to fill.")],
    *,
    given: options.Given,
) -> None:
    """Cut the face of each video out, as `emi extract` does, into PNG images. Run it again to resume.

    OUT/ID/00001.png is the first row of a clip; rows without a face have no image. faces.csv lists time, box and
    landmarks of each row, sheet.png shows some crops of each clip. `emi extract OUT --backbone mtcnn` takes the crops
    as clips. Videos that cannot be read are listed in failures.csv, and the exit code is 1.

    Example: emi faces clips/ --out artifacts/faces
    """
    from emi.console import Progress
    from extract.backbones import identify
    from extract.faces.crop_folder import write_faces
    from extract.faces.crop_table import TABLE
    from extract.faces.sheet import SHEET, draw_sheet

    settings = take(ExtractSettings, given)
    identify("mtcnn")  # refuses to start without the detector's weights
    with Progress("cutting faces out of") as progress:
        summary = write_faces(media, out, settings, progress)
    if summary.written or not (out / SHEET).is_file():
        draw_sheet(out, summary.ids)
    there = f"; {summary.present} were there" if summary.present else ""
    done = f"wrote {summary.crops} crops of {summary.written} clips{there}"
    typer.echo(done if summary.written or summary.failures else f"nothing to do: all {summary.present} clips are there")
    shown = f"{SHEET} some of each clip, {TABLE} where they were found"
    typer.echo(f"{out.resolve()} holds pictures of people's faces, personal data like the videos: {shown}")
    typer.echo(f"`emi clean {out}` removes them when they are no longer needed")
    tell_missing(summary.missing)
    tell_others(summary.others, settings.face)
    listed = [f"{failure.path}: {failure.reason}" for failure in summary.failures]
    tell_some(f"{len(listed)} clips could not be read (also in {summary.failures_file})", listed)
    if summary.failures:
        raise typer.Exit(1)
