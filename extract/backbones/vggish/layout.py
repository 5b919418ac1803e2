"""What VGGish's family, network and published file have in common."""

MODEL_TYPE = "vggish"
LAST_RELU = "last_relu"
"""Key in config.json: whether a ReLU follows the last layer, as in torchvggish 0.1; other copies have none."""
HOP_SECONDS = 0.96
DIM = 128
