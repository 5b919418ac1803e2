"""Arousal per second of a film from six numbers per frame, nested leave one run out:

    EMI_STUDYFORREST=FOLDER python benchmarks/frames.py [--rows NAME …] [--seeds 3] [--out FOLDER] [--json FILE]
    python benchmarks/frames.py --quick

FOLDER holds runs of the film of studyforrest (studyforrest.org, PDDL) in the layout of Aff-Wild2: with 25 rows a second
in `annotations/run-N.txt`, and as many in `audio/run-N.npy` and `visual/run-N.npy`. With --quick, drawn runs stand
for them. Both are imported as caches (`emi cache import --hop 0.04`); means and spreads of a second each are derived.

Each run is left out in turn. One model for each of the others trains on the remaining ones, and their mean predicts
the run that is left out, which nothing else sees: every model keeps its last epoch, and the width of the smoothing,
and the choice between settings and numbers of epochs where a row has several, come from what these models predict of
the runs that they validate on, over all seeds. (A model that saw neither of two runs serves both.) Beside it stands the
score with the width that the settings give.
The figure is the CCC over all annotated seconds of all runs, computed in float64 from the prediction files: its mean
over the seeds, and the interval of 2,000 resamples of the runs.
"""

import argparse
import hashlib
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from numpy.typing import NDArray

from benchmarks._machine import header_line
from cache.derive.derived import derive
from cache.exchange.importing import import_features
from train_head.evaluation.resampling import resampled
from train_head.runs.inputs import LabelFiles, gather_inputs
from train_head.training.settings import resolve_settings
from train_head.training.smoothing_kinds import moving_mean
from train_head.training.trainer import Trainer

FOLDER = "EMI_STUDYFORREST"
CONFIG = Path(__file__).parents[1] / "configs" / "studyforrest.toml"
FPS = 25
WIDTHS = (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15)
"""Seconds on either side that are tried for the moving mean."""
TARGETS = ("valence", "arousal")
JUDGED = TARGETS.index("arousal")
Seconds = NDArray[np.float64]
"""(seconds, 2) of one run; NaN where nobody annotated."""
Pairs = dict[tuple[str, str], Seconds]
"""By run and another: what is predicted of the first by the model that saw neither."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table.

    Attributes:
        name: for the table.
        streams: that are read.
        candidates: changes to configs/studyforrest.toml, of which the other runs choose one.
        fps: label rows per second: one per frame, or one per second where attention over frames would take too long.
    """

    name: str
    streams: tuple[str, ...]
    candidates: tuple[Mapping[str, Any], ...] = ({},)
    fps: int = FPS


BOTH = ("audio", "visual")
CHOICES: tuple[Mapping[str, Any], ...] = tuple(
    {"epochs": epochs, "stop_after": epochs} | blocks
    for epochs in (20, 40, 60)
    for blocks in ({}, {"streams": {"audio": {"tcn": {"block": "residual"}}}})
)
"""Epochs, with audio's blocks without or with layer normalisation."""
EPOCHS = CHOICES[::2]
TRANSFORMER = {
    "fusion": {
        "name": "transformer",
        "width_in": 16,
        "hidden": 16,
        "width": 16,
        "heads": 2,
        "layers": 1,
        "dropout": 0.3,
    }
}
ROWS = (
    Row(name="audio", streams=("audio",)),
    Row(name="visual", streams=("visual",)),
    Row(name="audio + visual", streams=BOTH),
    Row(name="audio, epochs chosen", streams=("audio",), candidates=EPOCHS),
    Row(name="audio + visual, epochs chosen", streams=BOTH, candidates=EPOCHS),
    Row(name="audio, all chosen", streams=("audio",), candidates=CHOICES),
    Row(name="audio + visual, all chosen", streams=BOTH, candidates=CHOICES),
    Row(name="without TCN", streams=BOTH, candidates=({"layers": 1, "kernel": 1},), fps=1),
    Row(name="Transformer", streams=BOTH, candidates=(TRANSFORMER,), fps=1),
)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Caches, labels and where predictions go."""

    work: Path
    labels: Path
    seeds: int
    others: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, row: Row) -> dict[str, Any]:
        """Figures of one line."""
        truth = {file.stem: seconds(file, missing=True) for file in sorted(self.labels.glob("*.txt"))}
        given = [resolve_settings(CONFIG).smooth_rows // FPS] * len(TARGETS)
        tried = [[self.pairs(row, number, seed) for seed in range(self.seeds)] for number in range(len(row.candidates))]
        chosen = {left_out: best_on_others(tried, truth, left_out) for left_out in truth}
        predicted: dict[str, list[dict[str, Seconds]]] = {"raw": [], "given": [], "smoothed": []}
        for seed in range(self.seeds):
            raw, smoothed = {}, {}
            for run, (number, widths) in chosen.items():
                raw[run] = np.mean([tried[number][seed][run, other] for other in truth if other != run], axis=0)
                smoothed |= smooth({run: raw[run]}, widths)
            for kind, found in (("raw", raw), ("given", smooth(raw, given)), ("smoothed", smoothed)):
                predicted[kind].append(self.written(f"{row.name}-{seed}-{kind}", found))
        choices = {run: {"candidate": number, "half_widths": widths} for run, (number, widths) in chosen.items()}
        return {"name": row.name} | figures(predicted, truth) | {"chosen": choices}

    def pairs(self, row: Row, number: int, seed: int) -> Pairs:
        """What is predicted of the first of two runs by the model that saw neither; kept for the next call."""
        settings = resolve_settings(CONFIG, seed=seed, label_fps=row.fps, **{**row.candidates[number], **self.others})
        settings = settings.on_this_machine().for_streams(row.streams)
        kept = self.work / f"{hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}.npz"
        if kept.is_file():
            with np.load(kept) as arrays:
                return {(one, other): arrays[f"{one} {other}"] for one, other in map(str.split, arrays.files)}
        labels = self.thinned(row.fps)
        files = LabelFiles.named(labels, labels, format=settings.label_format())
        runs = gather_inputs({name: self.work / f"{name}.zarr" for name in row.streams}, files).splits["train"]
        found: Pairs = {}
        for pair in itertools.combinations(range(len(runs)), 2):
            rest = runs.take([run for run in range(len(runs)) if run not in pair])
            trainer = Trainer(settings, rest, None, None)
            trainer.fit()
            for one, other in (pair, pair[::-1]):
                values = trainer.predict(runs.take([one])).astype(np.float64)
                key = runs.labels.ids[one], runs.labels.ids[other]
                found[key] = values.reshape(-1, row.fps, len(TARGETS)).mean(axis=1)
            print(f"{row.name}, settings {number}, seed {seed}, without {pair}", file=sys.stderr, flush=True)
        np.savez(kept, **{f"{one} {other}": values for (one, other), values in found.items()})  # type: ignore[arg-type]
        return found

    def thinned(self, fps: int) -> Path:
        """Write the labels with so many rows a second, whole seconds only; return their folder."""
        folder = self.work / f"labels-{fps}"
        folder.mkdir(exist_ok=True)
        for file in self.labels.glob("*.txt"):
            header, *lines = file.read_text().splitlines()
            lines = lines[: len(lines) // FPS * FPS : FPS // fps]
            (folder / file.name).write_text("\n".join([header, *lines, ""]))
        return folder

    def written(self, name: str, runs: Mapping[str, Seconds]) -> dict[str, Seconds]:
        """Write predictions in the layout of the labels, and return what the files say."""
        folder = self.work / "predictions" / name.replace(" ", "")
        folder.mkdir(parents=True, exist_ok=True)
        for run, values in runs.items():
            np.savetxt(
                folder / f"{run}.txt",
                np.repeat(values, FPS, axis=0),
                "%.9g",
                delimiter=",",
                header=",".join(TARGETS),
                comments="",
            )
        return {run: seconds(folder / f"{run}.txt") for run in runs}


def best_on_others(
    tried: Sequence[Sequence[Pairs]], truth: Mapping[str, Seconds], left_out: str
) -> tuple[int, list[int]]:
    """Return which settings, and which half-widths for them, are best on all runs but one: the mean over the seeds.

    Args:
        tried: for each of the settings and each seed, what is predicted of a run by a model that saw neither it nor
            another.
        truth: of each run.
        left_out: the run that has no part in the choice.
    """
    found = []
    for number, by_seed in enumerate(tried):
        validated = [{run: pairs[run, left_out] for run in truth if run != left_out} for pairs in by_seed]
        widths = [best_width(validated, truth, target) for target in range(len(TARGETS))]
        found.append((mean_score([smooth(runs, widths) for runs in validated], truth, JUDGED), -number, widths))
    _, number, widths = max(found)
    return -number, widths


def figures(predicted: Mapping[str, Sequence[Mapping[str, Seconds]]], truth: Mapping[str, Seconds]) -> dict[str, Any]:
    """Mean and spread over the seeds by target, raw and smoothed; of the smoothed the interval, and each run's CCC.

    The resamples are the same in every row, so `drawn`, those of the judged target, may be subtracted.
    """
    told: dict[str, Any] = {}
    groups = [run for run, values in truth.items() for _ in values]
    joined = np.concatenate(list(truth.values()))
    for kind, by_seed in predicted.items():
        values = [np.concatenate([found[run] for run in truth]) for found in by_seed]
        drawn = resampled(values, joined, groups, metric="ccc").mean(axis=1)
        for k, target in enumerate(TARGETS):
            scores = [score(found, truth, k) for found in by_seed]
            told[f"{target}_{kind}"] = statistics.mean(scores)
            told[f"{target}_{kind}_std"] = statistics.stdev(scores) if len(scores) > 1 else None
            told[f"{target}_{kind}_interval"] = interval(drawn[:, k])
    by_run = {r: statistics.mean(pooled_ccc([(f[r], truth[r])], JUDGED) for f in predicted["smoothed"]) for r in truth}
    return told | {"by_run": by_run, "drawn": drawn[:, JUDGED]}


def interval(drawn: NDArray[np.float64]) -> list[float]:
    """95 % percentiles of a score in the resamples."""
    return [float(bound) for bound in np.percentile(drawn, [2.5, 97.5])]


def seconds(file: Path, fps: int = FPS, *, missing: bool = False) -> Seconds:
    """Read a file with so many rows a second; predictions are averaged over each second."""
    rows = np.loadtxt(file, delimiter=",", skiprows=1)
    whole = len(rows) // fps * fps
    values: Seconds = rows[:whole].reshape(-1, fps, rows.shape[1]).mean(axis=1)
    if missing:
        values[(values == -5).any(axis=1)] = np.nan
    return values


def smooth(runs: Mapping[str, Seconds], widths: Sequence[int]) -> dict[str, Seconds]:
    """Moving mean of each target within each run, as `--smooth mean` takes it."""
    return {
        run: np.stack([moving_mean(column, half) for column, half in zip(values.T, widths, strict=True)], axis=1)
        for run, values in runs.items()
    }


def best_width(by_seed: Sequence[Mapping[str, Seconds]], truth: Mapping[str, Seconds], target: int) -> int:
    """The width with the highest mean CCC of a target; the smallest of equals."""

    def ccc(half: int) -> float:
        return mean_score([smooth(runs, [half] * len(TARGETS)) for runs in by_seed], truth, target)

    return max(WIDTHS, key=lambda half: (ccc(half), -half))


def mean_score(by_seed: Sequence[Mapping[str, Seconds]], truth: Mapping[str, Seconds], target: int) -> float:
    """Mean over the seeds of `score`."""
    return statistics.mean(score(runs, truth, target) for runs in by_seed)


def score(runs: Mapping[str, Seconds], truth: Mapping[str, Seconds], target: int) -> float:
    """CCC over all annotated seconds of some runs."""
    return pooled_ccc([(values, truth[run]) for run, values in runs.items()], target)


def pooled_ccc(pairs: Sequence[tuple[Seconds, Seconds]], target: int) -> float:
    """2 cov / (var + var + (difference of means)²), population moments, over the annotated seconds of all pairs."""
    x, y = (np.concatenate([pair[side][:, target] for pair in pairs]) for side in (0, 1))
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return float(2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2))


def draw(folder: Path) -> Path:
    """Make three short runs in the layout of the data, whose arousal follows both streams."""
    rng = np.random.default_rng(0)
    for name in ("annotations", *BOTH):
        (folder / name).mkdir(parents=True)
    for run in range(1, 4):
        course = np.convolve(rng.normal(size=80), np.ones(5) / 5, "same")
        labels = np.clip(np.stack([rng.uniform(-1, 1, 80), course], axis=1), -1, 1)
        labels[:10] = -5
        text = "\n".join(f"{v:.4f},{a:.4f}" for v, a in np.repeat(labels, FPS, axis=0))
        (folder / "annotations" / f"run-{run}.txt").write_text(f"valence,arousal\n{text}\n")
        for name, dim in (("audio", 2), ("visual", 4)):
            rows = np.repeat(course, FPS)[:, None] + rng.normal(size=(80 * FPS, dim))
            np.save(folder / name / f"run-{run}.npy", rows.astype(np.float32))
    return folder


def prepare(data: Path, work: Path) -> None:
    """Import both streams and derive a row per second."""
    for name in BOTH:
        source = work / f"frames-{name}.zarr"
        import_features(data / name, source, name=name, hop_seconds=1 / FPS, dtype="float32", modality=name)
        derive(source, work / f"{name}.zarr", pool=FPS, pool_stats=("mean", "std"), dtype="float32")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="drawn runs, an epoch each: does it run at all?")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--label-fps", type=int, choices=(1, FPS), default=FPS, help="label rows; 1 is the same loss in half the time"
    )
    parser.add_argument("--out", type=Path, help="keep caches and predictions here")
    parser.add_argument("--json", help="write the rows here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="emi-studyforrest-") as temporary:
        work = options.out or Path(temporary)
        data = draw(Path(temporary) / "drawn") if options.quick else Path(os.environ.get(FOLDER, ""))
        if not (data / "annotations").is_dir():
            sys.exit(f"{FOLDER}={data} has no folder `annotations`; set it to the data, or give --quick")
        prepare(data, work)
        seeds, others = (1, {"epochs": 1, "stop_after": 0}) if options.quick else (options.seeds, {})
        study = Study(work=work, labels=data / "annotations", seeds=seeds, others=others)
        wanted = [replace(row, fps=min(row.fps, options.label_fps)) for row in ROWS]
        rows = [study.measure(row) for row in wanted if options.rows is None or row.name in options.rows]
    columns = ("row", "arousal", "95 % interval over runs", "less audio", "width given", "not smoothed", "valence")
    print(f"{header_line()}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    audio = next((row["drawn"] for row in rows if row["name"] == "audio"), None)
    for row in rows:
        drawn = row.pop("drawn")
        spread = "" if row["arousal_smoothed_std"] is None else f" ± {row['arousal_smoothed_std']:.3f}"
        bounds = "{:.3f} to {:.3f}".format(*row["arousal_smoothed_interval"])
        row["less_audio"] = None if audio is None else interval(drawn - audio)
        less = "" if audio is None else "{:+.3f} to {:+.3f}".format(*row["less_audio"])
        print(
            f"| {row['name']} | {row['arousal_smoothed']:.3f}{spread} | {bounds} | {less} | {row['arousal_given']:.3f} "
            f"| {row['arousal_raw']:.3f} | {row['valence_smoothed']:.3f} |"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
