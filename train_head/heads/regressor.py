"""The last layers of a head: from a summary or a state to one value per target."""

from torch import nn

OUTPUTS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
"""The authors' code has no activation at the output; the final paper speaks of tanh."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
"""Between the layers of a fusion."""


def paper_regressor(width: int, targets: int, output: str) -> nn.Sequential:
    """Linear → Tanh → Linear → output (arXiv 2403.11879, section 3).

    Args:
        width: size of the input; the first layer keeps it.
        targets: values that are predicted.
        output: a name in `OUTPUTS`.
    """
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, targets), OUTPUTS[output]())


def two_layers(
    width: int, hidden: int, targets: int, dropout: float, output: str, activation: str = "tanh"
) -> nn.Sequential:
    """Dropout → Linear → activation → Dropout → Linear → output; with tanh, the paper's and dropout."""
    return nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(width, hidden),
        ACTIVATIONS[activation](),
        nn.Dropout(dropout),
        nn.Linear(hidden, targets),
        OUTPUTS[output](),
    )


def one_layer(width: int, targets: int, dropout: float, output: str) -> nn.Sequential:
    """Dropout → Linear → output."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, targets), OUTPUTS[output]())
