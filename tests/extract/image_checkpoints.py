"""Tiny random image encoders, as the transformers library saves them, and the library's own features of an image."""

import json

import numpy as np
import torch
import transformers
from PIL import Image

from extract.backbones.image.models import MODELS

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
STAGES = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "image_size": 32, "patch_size": 4, "window_size": 4}
CONVOLUTIONS = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 20}
SQUARE = {"size": {"height": 32, "width": 32}}
SHORTEST = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
DINOV3 = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    **SQUARE,
}
CASES = {
    "vit": ("ViTModel", VIT, "ViTImageProcessorPil", SQUARE),
    "vit classifier": ("ViTForImageClassification", VIT, "ViTImageProcessorPil", SQUARE | {"resample": 3}),
    "deit": ("DeiTModel", VIT, "DeiTImageProcessorPil", {"size": {"height": 40, "width": 40}} | SHORTEST),
    "beit": ("BeitModel", VIT | {"use_mean_pooling": True}, "BeitImageProcessorPil", SQUARE),
    "dinov2": ("Dinov2Model", VIT, "BitImageProcessorPil", SHORTEST),
    "dinov2 at another size": ("Dinov2Model", VIT | {"image_size": 56}, "BitImageProcessorPil", SHORTEST),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", VIT, "BitImageProcessorPil", SHORTEST),
    "dinov3_vit": ("DINOv3ViTModel", VIT | {"num_register_tokens": 2}, None, DINOV3),
    "dinov3_convnext": ("DINOv3ConvNextModel", {"hidden_sizes": [8, 16, 24, 32], "depths": [1] * 4}, None, DINOV3),
    "clip": ("CLIPModel", {"vision_config": VIT, "text_config": TEXT}, "CLIPImageProcessorPil", SHORTEST),
    "clip_vision_model": ("CLIPVisionModel", VIT, "CLIPImageProcessorPil", SHORTEST),
    "clip with a projection": ("CLIPVisionModelWithProjection", VIT, "CLIPImageProcessorPil", SHORTEST),
    "siglip": ("SiglipModel", {"vision_config": VIT, "text_config": TEXT}, "SiglipImageProcessorPil", SQUARE),
    "siglip_vision_model": ("SiglipVisionModel", VIT, "SiglipImageProcessorPil", SQUARE),
    "swin": ("SwinModel", STAGES, "ViTImageProcessorPil", SQUARE),
    "swinv2": ("Swinv2Model", STAGES, "ViTImageProcessorPil", SQUARE),
    "convnext": ("ConvNextModel", CONVOLUTIONS, "ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}}),
    "convnextv2": ("ConvNextV2Model", CONVOLUTIONS, "ConvNextImageProcessorPil", {"size": {"shortest_edge": 400}}),
    "resnet": ("ResNetModel", CONVOLUTIONS | {"embedding_size": 16}, "ConvNextImageProcessorPil", {}),
}
"""By name: the class of the model and its configuration, the class of the processor and its settings."""


def save(folder, name):
    """Save a random checkpoint whose every weight changes its output."""
    kind, config, processor, settings = CASES[name]
    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if processor is None:
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    else:
        getattr(transformers, processor)(**settings).save_pretrained(folder)
    return folder


def library(folder, images, output):
    """The library's own image processor and model on one image at a time, as its documentation shows."""
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, MODELS[config["model_type"]].kind).from_pretrained(folder).eval()
    prepare = (
        as_dinov3
        if "dinov3" in config["model_type"]
        else transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    )
    found = []
    with torch.inference_mode():
        for image in images:
            states = model(**prepare(Image.fromarray(image), return_tensors="pt"))
            found.append((states.last_hidden_state[:, 0] if output == "cls" else states.pooler_output).flatten(1))
    return torch.cat(found)


def as_dinov3(image, return_tensors):
    """The library has this processor on torchvision only: rescaled in float32, then resized, here by Pillow."""
    (height, width), channels = DINOV3["size"].values(), []
    colours = np.moveaxis(np.asarray(image), 2, 0)
    for values, mean, std in zip(colours, DINOV3["image_mean"], DINOV3["image_std"], strict=True):
        scaled = Image.fromarray(values.astype(np.float32) / 255).resize((width, height), Image.Resampling.BILINEAR)
        channels.append((np.asarray(scaled) - mean) / std)
    return {"pixel_values": torch.from_numpy(np.stack(channels)[None].astype(np.float32))}
