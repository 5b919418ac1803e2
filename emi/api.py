"""The two stages as plain functions: keyword arguments in, settings objects inside."""

from collections.abc import Sequence
from typing import Any

from cache.container import StrPath
from extract import run as extract_run
from extract.run import ExtractSummary
from extract.settings import ExtractSettings
from train_head import train as training
from train_head.settings import resolve_settings
from train_head.train import TrainResult


def extract(media: StrPath, cache: StrPath, **settings: Any) -> ExtractSummary:
    """Extract the features of media into a cache; what the cache has already is left as it is.

    Args:
        media: a folder (searched recursively), one file, a CSV with a Filename column, or a text list.
        cache: `NAME.zarr` or `NAME.h5`, created where missing.
        **settings: the fields of `extract.settings.ExtractSettings`: backbone, max_seconds, precision, device, …;
            engine="ray" shares the work between the machines of a Ray cluster (address="auto" or HOST:PORT).

    Returns:
        What was written, what was there before, and the files that could not be read.

    Raises:
        EmiError: the input cannot be used, or the cache was made otherwise; nothing was written then.
    """
    return extract_run.extract(media, cache, ExtractSettings(**settings))


def train_head(
    cache: StrPath | Sequence[StrPath],
    train: StrPath,
    valid: StrPath,
    out: StrPath,
    *,
    test: StrPath | None = None,
    config: StrPath | None = None,
    skip_missing: bool = False,
    **settings: Any,
) -> TrainResult:
    """Train a head on cached features; the paper's settings are the defaults.

    Args:
        cache: one cache, or several with equal fingerprints.
        train: label CSV of the training split.
        valid: label CSV by which the best epoch is chosen.
        out: run folder; called again, an unfinished run is taken up where it stopped.
        test: CSV of a third split to predict.
        config: TOML file of settings.
        skip_missing: leave out labelled clips that the cache does not hold.
        **settings: fields of `train_head.settings.TrainSettings` (lr, epochs, seed, …) or options of the head (hidden).

    Raises:
        EmiError: see `train_head.train.train`.
    """
    resolved = resolve_settings(config, **settings)
    return training.train(cache, train, valid, out, resolved, test=test, skip_missing=skip_missing)
