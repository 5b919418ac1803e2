"""End-to-end training: media → backbone → the head of the cached mode, in one graph."""

from emi.end_to_end.settings import FinetuneSettings, resolve
from emi.end_to_end.start import finetune

__all__ = ["FinetuneSettings", "finetune", "resolve"]
