"""What a user is told before a backbone is downloaded or used whose licence forbids commercial use."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from cache.licences import Licence


def tell_licence(backbone: str) -> None:
    """Say so in one line, from what is known without a download."""
    from extract.backbones.licence import licence_of_weights

    _tell(backbone, licence_of_weights(backbone))


def tell_licence_of_run(folder: Path) -> None:
    """The same of the backbone that a run was made with.

    Raises:
        RunFolderError: the folder is no run.
    """
    from cache.licences import licence_of_run
    from train_head.runs.run_folder import read_config_file

    _tell(str(folder), licence_of_run(read_config_file(folder)))


def _tell(name: str, licence: "Licence") -> None:
    if licence.commercial_use == "no":
        typer.echo(
            f"{name}: {licence}; features, heads and predictions that are made with these weights are bound by it",
            err=True,
        )
