"""Image encoders of the transformers library and of timm, for crops of faces."""
