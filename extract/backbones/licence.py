"""Find the licence of a checkpoint's weights: by its id, in the run that trained them, or in its model card."""

import tomllib
from pathlib import Path

from cache.licences import LICENCE, UNKNOWN, Licence, known_licence, licence_from_card, licence_of_run

CARD, RUN = "README.md", "config.toml"


def licence_of_weights(name: str, folder: Path | None = None) -> Licence:
    """Return the licence of a backbone.

    Args:
        name: as the user gave it: a name, a Hugging Face id or a folder.
        folder: with its files; None where nothing was downloaded, so that only the name is known.
    """
    place = Path(name).expanduser()
    if folder is None and name and place.is_dir():
        folder = place
    known = known_licence(str(place.resolve()) if folder is not None and place.is_dir() else name.partition("@")[0])
    if folder is None:
        return known or UNKNOWN
    return _of_run(folder / RUN) or known or _of_card(folder / CARD)


def _of_run(config: Path) -> Licence | None:
    """Return the licence that a fine-tuned run recorded of its backbone; None for other folders."""
    if not config.is_file():
        return None
    try:
        tables = tomllib.loads(config.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return None
    return licence_of_run(tables) if {LICENCE, "backbone"} & tables.keys() else None


def _of_card(card: Path) -> Licence:
    if not card.is_file():
        return UNKNOWN
    from huggingface_hub.repocard import metadata_load

    try:
        found = metadata_load(card)
    except Exception:  # a card is written by hand and may hold anything
        return UNKNOWN
    return licence_from_card(found) if isinstance(found, dict) else UNKNOWN
