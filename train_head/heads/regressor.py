"""The last layers of a head: from the summary of a clip to one value per target."""

from torch import nn

OUTPUTS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
"""The authors' code has no activation at the output; the final paper speaks of tanh."""


def build_regressor(width: int, targets: int, dropout: float, output: str) -> nn.Sequential:
    """Dropout → Linear → Tanh → Dropout → Linear → output: the paper's regressor, with dropout before its layers.

    Args:
        width: size of the summary; the first layer keeps it, as the paper's does.
        targets: values per clip.
        dropout: before each layer.
        output: a name in `OUTPUTS`.
    """
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Dropout(dropout),
        nn.Linear(width, targets),
        OUTPUTS[output](),
    )
