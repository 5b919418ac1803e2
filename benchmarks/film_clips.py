"""Mean arousal of clips of 20 seconds of a film, leave one run out: audio, visual and both.

    EMI_STUDYFORREST=FOLDER python benchmarks/film_clips.py [--seeds 3] [--json FILE]
    python benchmarks/film_clips.py --quick

The data are those of `frames.py`. Each run is cut into clips of 20 seconds; the label of a clip is its mean arousal
over the annotated seconds, where at least half are. Runs are groups, and `emi train-head --folds 6 --group-by` predicts
each run from the others. Settings and the number of epochs were fixed before the first run; nothing is chosen.
Pearson and CCC are taken over all clips of all runs: the mean over the seeds, with the interval of 2,000 resamples of
the runs.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np

import emi
from benchmarks._machine import header_line
from benchmarks.frames import BOTH, FOLDER, FPS, JUDGED, draw, seconds
from cache.derive.derived import derive
from cache.exchange.importing import import_features
from train_head.data.label_format import LabelFormat
from train_head.data.labels import read_labels
from train_head.data.predictions import read_predictions
from train_head.evaluation.metrics import concordance, pearson
from train_head.evaluation.resampling import resampled

SECONDS = 20
RUN = r"(run-\d+)"
SETTINGS: dict[str, Any] = {
    "head": "mlp",  # mean, spread and maximum over the clip
    "hidden": 16,
    "dropout": 0.3,
    "fusion": {"hidden": 16, "dropout": 0.3},
    "loss": "ccc",
    "label_range": (-1, 1),
    "standardise": True,
    "lr": 3e-3,
    "weight_decay": 0.05,
    "batch_size": 64,
    "epochs": 30,
    "stop_after": 30,  # the last epoch
    "precision": "fp32",
}
STREAMS = (("audio",), ("visual",), BOTH)


def cut(data: Path, work: Path) -> int:
    """Write clips of features, their caches of a row per second, and `labels.csv`; return the number of runs."""
    lines, labels = ["Filename,arousal"], sorted((data / "annotations").glob("*.txt"))
    for name in BOTH:
        (work / name).mkdir()
    for file in labels:
        arousal = seconds(file, missing=True)[:, JUDGED]
        rows = {name: np.load(data / name / f"{file.stem}.npy") for name in BOTH}
        for first in range(0, len(arousal) - SECONDS + 1, SECONDS):
            part = arousal[first : first + SECONDS]
            if np.isnan(part).mean() > 0.5:
                continue
            clip = f"{file.stem}-{first:04d}"
            lines.append(f"{clip},{np.nanmean(part):.6f}")
            for name in BOTH:
                np.save(work / name / f"{clip}.npy", rows[name][first * FPS : (first + SECONDS) * FPS])
    (work / "labels.csv").write_text("\n".join([*lines, ""]))
    for name in BOTH:
        source = work / f"frames-{name}.zarr"
        import_features(work / name, source, name=name, hop_seconds=1 / FPS, dtype="float32", modality=name)
        derive(source, work / f"{name}.zarr", pool=FPS, pool_stats=("mean", "std"), dtype="float32")
    return len(labels)


def measure(work: Path, streams: tuple[str, ...], runs: int, seeds: int, **others: Any) -> dict[str, Any]:
    """Figures of some streams."""
    predicted = []
    for seed in range(seeds):
        out = work / f"{'-'.join(streams)}-{seed}"
        emi.train_head(
            {name: work / f"{name}.zarr" for name in streams},
            work / "labels.csv",
            out=out,
            folds=runs,
            group_by=RUN,
            seed=seed,
            **(SETTINGS | others),
        )
        truth = read_labels(out / "labels_folds.csv", LabelFormat(range=SETTINGS["label_range"]))
        predicted.append(read_predictions(out / "predictions_folds.csv", truth).astype(np.float64))
    groups = [name[: name.rindex("-")] for name in truth.filenames]
    told: dict[str, Any] = {"name": " + ".join(streams), "clips": len(groups)}
    for metric, score in (("ccc", concordance), ("pearson", pearson)):
        scores = [score(values[:, 0], truth.values[:, 0]) or 0.0 for values in predicted]
        drawn = resampled(predicted, truth.values, groups, metric=metric)[..., 0].mean(axis=1)
        low, high = np.nanpercentile(drawn, [2.5, 97.5])
        spread = statistics.stdev(scores) if seeds > 1 else None
        told |= {metric: statistics.mean(scores), f"{metric}_std": spread, f"{metric}_interval": [low, high]}
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="drawn runs, an epoch each: does it run at all?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="emi-film-clips-") as temporary:
        work = Path(temporary)
        data = draw(work / "drawn") if options.quick else Path(os.environ.get(FOLDER, ""))
        if not (data / "annotations").is_dir():
            sys.exit(f"{FOLDER}={data} has no folder `annotations`; set it to the data, or give --quick")
        runs = cut(data, work)
        seeds, others = (1, {"epochs": 1, "stop_after": 1}) if options.quick else (options.seeds, {})
        rows = [measure(work, streams, runs, seeds, **others) for streams in STREAMS]
    print(f"{header_line()}\n\n| streams | clips | CCC | 95 % interval over runs | Pearson | 95 % interval |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        cells = [
            f"{row[m]:.3f} | {row[f'{m}_interval'][0]:.3f} to {row[f'{m}_interval'][1]:.3f}" for m in ("ccc", "pearson")
        ]
        print(f"| {row['name']} | {row['clips']} | {' | '.join(cells)} |")
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
