"""A fine-tuned run as a backbone and a head: what extraction, prediction and the transformers library open.

model.safetensors, config.json   the backbone, in the transformers layout
features.toml                    what it gives: size, hop, fingerprint
best.safetensors                 the head, written last: where it is, the others belong to it
"""

import copy
from pathlib import Path

import tomli_w
from safetensors.torch import save_file

from cache.system.atomic_file import replace_durably, write_atomically
from emi.finetuning.depth import merge_adapters
from emi.finetuning.model import BackboneWithHead
from emi.finetuning.settings import FinetuneSettings
from extract.backbones import identify
from extract.errors import BackboneError
from extract.run import make_header
from extract.settings import ExtractSettings
from train_head.errors import RunFolderError
from train_head.runs import run_folder


class Export:
    """Writes and reads the finished weights of a run.

    Args:
        tuning: settings of the backbone.
        precision: in which it was trained, and in which it will compute.
    """

    def __init__(self, tuning: FinetuneSettings, precision: str) -> None:
        self._tuning, self._precision = tuning, precision

    def write(self, folder: Path, model: BackboneWithHead) -> None:
        """Leave the model's backbone and head in the folder."""
        backbone = model.backbone
        if self._tuning.lora:
            backbone = copy.deepcopy(backbone)
            merge_adapters(backbone)
        backbone.save(folder)
        place = str(folder.resolve())  # a folder called "silero" is not the packaged backbone
        identity = identify(place)
        settings = ExtractSettings(
            backbone=place, max_seconds=self._tuning.max_seconds, dtype="float32", track=self._tuning.decoding.track
        )
        header = make_header(identity, settings, self._precision)
        features = {
            "dim": header.dim,
            "vad_names": list(header.vad_names),
            "hop_seconds": header.hop_seconds,
            "source": run_folder.HERE,
            "fingerprint": dict(header.fingerprint),
        }
        write_atomically(folder / run_folder.FEATURES, tomli_w.dumps(features).encode())
        temporary = folder / f"{run_folder.BEST}.tmp"
        save_file({n: t.contiguous().cpu() for n, t in model.predictor.state_dict().items()}, temporary)
        replace_durably(temporary, folder / run_folder.BEST)

    def read(self, folder: Path, model: BackboneWithHead) -> None:
        """Put what `write` left into a model; adapters are part of the backbone then.

        Raises:
            RunFolderError: a file is missing or damaged.
        """
        if self._tuning.lora:
            merge_adapters(model.backbone)
        try:
            model.backbone.restore(folder)
        except (OSError, KeyError, RuntimeError, BackboneError, ValueError) as error:
            raise RunFolderError(
                f"the backbone in {folder} is missing or damaged ({error}); restore it from a copy, or train into a "
                "new --out"
            ) from error
        model.predictor.load_state_dict(run_folder.load_best(folder))
