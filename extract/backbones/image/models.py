"""Which image encoders are run, and what each gives. Importing this module imports no torch."""

from dataclasses import dataclass

from extract.backbones.checkpoint import Checkpoint

CLS, POOLED = "cls", "pooled"
TIMM = "timm_wrapper"


@dataclass(frozen=True)
class ImageModel:
    """One architecture.

    Attributes:
        kind: class in transformers.
        outputs: that it has, its default first. `cls` is the last hidden state of the class token; `pooled` is what
            the model makes of its states: CLIP normalises its class token, SigLIP attends, others average.
    """

    kind: str
    outputs: tuple[str, ...]


_CLIP, _SIGLIP = ImageModel("CLIPVisionModel", (POOLED, CLS)), ImageModel("SiglipVisionModel", (POOLED,))
MODELS = {
    "vit": ImageModel("ViTModel", (CLS, POOLED)),
    "deit": ImageModel("DeiTModel", (CLS, POOLED)),
    "beit": ImageModel("BeitModel", (POOLED, CLS)),
    "dinov2": ImageModel("Dinov2Model", (CLS, POOLED)),
    "dinov2_with_registers": ImageModel("Dinov2WithRegistersModel", (CLS, POOLED)),
    "dinov3_vit": ImageModel("DINOv3ViTModel", (CLS, POOLED)),
    "dinov3_convnext": ImageModel("DINOv3ConvNextModel", (POOLED,)),
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "swin": ImageModel("SwinModel", (POOLED,)),
    "swinv2": ImageModel("Swinv2Model", (POOLED,)),
    "convnext": ImageModel("ConvNextModel", (POOLED,)),
    "convnextv2": ImageModel("ConvNextV2Model", (POOLED,)),
    "resnet": ImageModel("ResNetModel", (POOLED,)),
    TIMM: ImageModel("TimmWrapperModel", (POOLED,)),
}
"""By `model_type` of config.json."""


def dim_of(checkpoint: Checkpoint) -> int:
    """Return the numbers per image. The library's default is 768 where a configuration does not say it."""
    config = checkpoint.config.get("vision_config", checkpoint.config)
    if checkpoint.model_type == TIMM:
        return _timm_dim(checkpoint)
    if "hidden_sizes" in config:  # of stages
        return int(config["hidden_sizes"][-1])
    if "embed_dim" in config and "depths" in config:  # Swin doubles its width from stage to stage
        return int(config["embed_dim"] * 2 ** (len(config["depths"]) - 1))
    return int(config.get("hidden_size", 768))


def _timm_dim(checkpoint: Checkpoint) -> int:
    """Return the width of the pooled output of a timm model; nothing is computed."""
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(
            checkpoint.config["architecture"], num_classes=0, **(checkpoint.config.get("model_args") or {})
        )
    return int(getattr(model, "head_hidden_size", None) or model.num_features)
