"""`emi import-weights`: a published file of weights into a folder for `--backbone`."""

from pathlib import Path
from typing import Annotated

import typer

from extract.backbones.iresnet.config import ATTENTIONS
from extract.errors import BackboneError


def import_weights(
    file: Annotated[Path, typer.Argument(help="backbone.pth of InsightFace's arcface_torch, or torchvggish's .pth.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write: config.json and model.safetensors.")],
    *,
    attention: Annotated[
        str, typer.Option(help="Of an IResNet: la-se adds LA-SE, without effect until it is trained; or none.")
    ] = "la-se",
    last_relu: Annotated[
        bool, typer.Option(help="Of VGGish: a ReLU follows the last layer, as in torchvggish 0.1.")
    ] = True,
) -> None:
    """Make a backbone of a published file of weights. No code in the file is run.

    Missing and unknown weights are named and refused. Mind the licence: InsightFace's own weights are for research
    only. Describe it in the README.md of the folder (front matter `license:`), and emi records it with what it makes.

    Example: emi import-weights backbone.pth iresnet50 && emi extract clips/ --cache face.zarr --backbone iresnet50
    """
    if attention not in ATTENTIONS:
        raise BackboneError(f"--attention takes {' or '.join(ATTENTIONS)}, got {attention!r}")
    from extract.backbones.published import write_folder  # which imports torch

    kind = write_folder(file, folder, attention=attention, last_relu=last_relu)
    typer.echo(f"wrote {folder}, a {kind} backbone: emi extract MEDIA --cache NAME.zarr --backbone {folder}")
