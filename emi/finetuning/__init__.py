"""End-to-end training: media → backbone → the head of the cached mode, in one graph."""

from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.start import finetune

__all__ = ["FinetuneSettings", "finetune", "resolve"]
