"""What a user is told before a backbone is downloaded or used whose licence forbids commercial use."""

import typer


def tell_licence(backbone: str) -> None:
    """Say so in one line, from what is known without a download."""
    from extract.backbones.licence import licence_of_weights

    licence = licence_of_weights(backbone)
    if licence.commercial_use == "no":
        typer.echo(
            f"{backbone}: {licence}; features, heads and predictions that are made with these weights are bound by it",
            err=True,
        )
