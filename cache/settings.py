"""Fields of settings: default and help are typed once, beside the value; options, TOML keys and docs come from them."""

import dataclasses
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def setting(default: Any, text: str, **how: Any) -> Any:
    """Return a dataclass field with a default and a help text.

    Args:
        default: of the field; a factory where it is callable.
        text: one or two sentences for `--help`, the docs and readers of the code.
        **how: `option`: name of the command line's option, or None for a field that only `--set` and TOML reach;
            `metavar`: what its value is called; `shown`: the default as `--help` prints it; `none`: what users type for
            None, where the default is another value.
    """
    given: dict[str, Any] = {"default_factory": default} if callable(default) else {"default": default}
    return dataclasses.field(**given, metadata={"help": text, **how})


def option_names(kind: type["DataclassInstance"]) -> dict[str, str]:
    """Return field names by the names under which users give them, of the fields that have an option."""
    names = {field.metadata.get("option", field.name): field.name for field in dataclasses.fields(kind)}
    return {option: field for option, field in names.items() if option is not None}


def take(kind: type[T], given: MutableMapping[str, Any]) -> T:
    """Make settings of the keywords that belong to them, which are removed from `given`; None is the default."""
    found = {field: given.pop(name) for name, field in option_names(kind).items() if name in given}
    for field in dataclasses.fields(kind):
        if found.get(field.name, ...) is None:
            del found[field.name]
        elif "none" in field.metadata and found.get(field.name) == field.metadata["none"]:
            found[field.name] = None
    return kind(**found)
