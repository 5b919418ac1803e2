"""A fine-tuned run as a backbone and a head, which extraction, prediction and the transformers library open.

model.safetensors, config.json   the backbone, in the transformers layout
features.toml                    its features: size, hop, fingerprint; beside cached streams, in the table of its stream
best.safetensors                 the head, written last: once it exists, the others belong to it
"""

import copy
from pathlib import Path

import tomli_w
from safetensors.torch import save_file

from cache.system.atomic_file import replacing, write_atomically
from emi.finetuning.depth import merge_adapters
from emi.finetuning.model import BackboneWithHead
from emi.finetuning.settings import FinetuneSettings
from extract.backbones import identify
from extract.errors import BackboneError
from extract.plan import make_header
from train_head.data.names import UNNAMED
from train_head.errors import RunFolderError
from train_head.runs import run_folder
from train_head.runs.inputs import features_table


def write_export(folder: Path, model: BackboneWithHead, tuning: FinetuneSettings, precision: str) -> None:
    """Write the finished backbone and head of a run.

    Args:
        folder: of the run.
        model: with the weights of the best epoch.
        tuning: settings of the backbone.
        precision: in which it was trained, and in which it will compute.
    """
    backbone = model.backbone
    if tuning.lora:
        backbone = copy.deepcopy(backbone)
        merge_adapters(backbone)
    backbone.save(folder)
    place = str(folder.resolve())  # a folder called "silero" is not the packaged backbone
    header = make_header(identify(place), tuning.extraction(place), precision)
    features = features_table(header, run_folder.HERE)
    tables = features if model.stream == UNNAMED else {model.stream: features}
    write_atomically(folder / run_folder.FEATURES, tomli_w.dumps(tables).encode())
    with replacing(folder / run_folder.BEST) as temporary:
        save_file({n: t.contiguous().cpu() for n, t in model.predictor.state_dict().items()}, temporary)


def read_export(folder: Path, model: BackboneWithHead, tuning: FinetuneSettings) -> None:
    """Load what `write_export` wrote into a model; adapters are then part of the backbone.

    Raises:
        RunFolderError: a file is missing or damaged.
    """
    if tuning.lora:
        merge_adapters(model.backbone)
    try:
        model.backbone.restore(folder)
    except (OSError, KeyError, RuntimeError, BackboneError, ValueError) as error:
        raise RunFolderError(
            f"the backbone in {folder} is missing or damaged ({error}); restore it from a copy, or train into a "
            "new --out"
        ) from error
    model.predictor.load_state_dict(run_folder.load_best(folder))
