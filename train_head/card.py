"""The model card of a run: what it is, what it was made from, how well it does, and what it must not be used for."""

from collections.abc import Mapping
from typing import Any

from cache.derive import describe
from cache.reader import FeatureCache
from train_head.data import Split
from train_head.labels import Labels
from train_head.metrics import Report
from train_head.settings import TrainSettings


def model_card(
    settings: TrainSettings,
    store: FeatureCache,
    labels: dict[str, Labels],
    splits: dict[str, Split],
    best_epoch: int,
    report: Report,
    test_report: Report | None,
) -> str:
    """Markdown text; every number in it is computed from the run."""
    fingerprint = store.fingerprint
    minutes = {name: int(split.lengths.sum()) * store.hop_seconds / 60 for name, split in splits.items()}
    rows = [f"| {n} | {len(s)} of {len(labels[n])} | {minutes[n]:.1f} |" for n, s in splits.items()]
    recipe = fingerprint.get("derived")
    derived = f"\nThese are derived by `emi cache derive`: {describe(recipe)}.\n" if recipe else ""
    test = f"\n## Test\n\n```\n{test_report.table()}\n```\n" if test_report else ""
    return f"""# Head `{settings.head}` for {", ".join(report.names)}

Predicts intensities in [0, 1] of a clip from features of `{fingerprint["backbone"]}`{_made(fingerprint)}.
{derived}
| split | clips | minutes |
|---|---|---|
{chr(10).join(rows)}

Trained with loss `{settings.loss}`, learning rate {settings.lr:g}, batch {settings.batch_size}, seed {settings.seed};
epoch {best_epoch} of {settings.epochs} was best by mean validation Pearson. All settings are in `config.toml`.

## Validation

The best epoch was chosen on these clips, so the figures are optimistic for new ones.

```
{report.table()}
```
{test}
## Use

```
emi predict MEDIA --model THIS_FOLDER
```

Intensities describe how strongly an emotion is *shown*; they say nothing about what a person feels. The licence of the
backbone's weights applies to what is made with them.
"""


def _made(fingerprint: Mapping[str, Any]) -> str:
    """How the features were extracted; imported ones do not say."""
    if "weights_sha256" not in fingerprint:
        return ""
    return (
        f"\n(first {fingerprint['max_seconds']:g} s, layer {fingerprint['layer']}, "
        f"weights `{fingerprint['weights_sha256'][:12]}…`)"
    )
