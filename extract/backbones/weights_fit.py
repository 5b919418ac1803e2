"""Compare the weights in a file with those that a module has."""

from collections.abc import Mapping

from torch import Tensor, nn

from extract.errors import BackboneError

COUNTER = "num_batches_tracked"
"""End of the names of counters that change no result; a file may have them or not."""
_SHOWN = 5


def without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out batch normalisation's counters."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}


def must_fit(tensors: Mapping[str, Tensor], module: nn.Module, where: object) -> None:
    """Refuse weights that are missing, unknown or of another shape.

    Args:
        tensors: in the file.
        module: that is to have them.
        where: the file or folder, for the message.

    Raises:
        BackboneError: they do not fit; the message names the weights.
    """
    wanted, found = without_counters(module.state_dict()), without_counters(tensors)
    misshapen = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted.keys() & found.keys()
        if found[name].shape != wanted[name].shape
    ]
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(found.keys() - wanted.keys()),
        "of another shape": sorted(misshapen),
    }
    said = [f"{len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names]
    if said:
        raise BackboneError(
            f"{where} does not hold the weights of {type(module).__name__}: {'; '.join(said)}; use the file as its "
            "authors publish it"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
