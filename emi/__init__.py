"""Emotional mimicry intensity from voice and face: extract features once, train heads in seconds, predict.

    import emi
    emi.extract("clips/", "features.zarr", backbone="silero")
    run = emi.train_head("features.zarr", train="train_split.csv", valid="valid_split.csv", out="runs/a")
    emi.load("runs/a").predict(["clip.mp4"])

Names are imported on first use, so that `import emi` and `emi --help` load neither torch nor transformers.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

from emi.neighbours import check_neighbours

check_neighbours()
from cache.system.account import name_the_user  # noqa: E402 - its name is one that may be hidden

if TYPE_CHECKING:
    from cache.errors import EmiError
    from cache.reader import open_cache
    from emi.api import ablate, ensemble, extract, finetune, sweep, table1, train_head
    from emi.prediction import load

__all__ = [
    "EmiError",
    "ablate",
    "ensemble",
    "extract",
    "finetune",
    "load",
    "open_cache",
    "sweep",
    "table1",
    "train_head",
]

# OpenMP's threads spin while they wait, which is a little faster on an idle machine and ruinous on a shared one: with
# one of two cores busy, a small model ran 100 times slower (measured). torch reads this when it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# The same for numpy's BLAS, whose threads spin 2^N cycles: a principal component analysis took 6 s for 0.5 (measured).
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
name_the_user()

_HOMES = {
    "EmiError": "cache.errors",
    "ablate": "emi.api",
    "ensemble": "emi.api",
    "extract": "emi.api",
    "finetune": "emi.api",
    "load": "emi.prediction",
    "open_cache": "cache.reader",
    "sweep": "emi.api",
    "table1": "emi.api",
    "train_head": "emi.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'emi' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
