"""What each stream is worth: a head on every subset of the streams, each with several seeds, on the same clips."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.predictions import prediction_file, read_predictions
from train_head.errors import TrainSettingsError
from train_head.evaluation.intervals import Difference
from train_head.evaluation.labelled import check_units, difference_of, several_groups
from train_head.evaluation.metrics import METRICS
from train_head.protocols.ablation import prepare
from train_head.protocols.result import ProtocolResult
from train_head.protocols.run import train_seeds
from train_head.reports.tables import OVER_TARGETS, cell, csv_text, markdown_table, text_table
from train_head.runs.inputs import Inputs
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings

MOST_STREAMS = 5
"""Of which there are 31 subsets."""
TABLE_CSV, TABLE_MD, PICTURE = "streams.csv", "streams.md", "streams"


@dataclass(frozen=True, kw_only=True)
class StreamAblation:
    """A finished ablation of streams.

    Attributes:
        folder: holds one folder of seeds per subset, streams.csv, streams.md, and the picture streams.svg and .png.
        results: by subset, in the order of the streams; the smallest subsets first.
        worth: by stream, the mean prediction from all streams against that from all but this one.
    """

    folder: Path
    results: Mapping[tuple[str, ...], ProtocolResult]
    worth: Mapping[str, Difference]

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        return all(result.nothing_to_do for result in self.results.values())

    def records(self) -> list[dict[str, Any]]:
        """One dict per subset: the columns of streams.csv; None is undefined.

        `mean` and `std` are over the seeds; `ensemble` is the seeds' mean, with bootstrap bounds `low` and `high`.
        Of a subset that lacks one stream, `without` is that stream, and `gain` to `p` say what the stream adds to it.
        """
        found = []
        for streams, result in self.results.items():
            scored, without = result.valid, [name for name in self.worth if name not in streams]
            gain = self.worth[without[0]].mean if len(without) == 1 else {}
            found.append(
                {
                    "streams": "+".join(streams),
                    "metric": scored.metric,
                    "seeds": len(result.members),
                    "mean": scored.mean,
                    "std": scored.std,
                    "ensemble": scored.report.mean(scored.metric),
                    "low": scored.intervals.mean_low,
                    "high": scored.intervals.mean_high,
                    "without": without[0] if len(without) == 1 else None,
                    "gain": gain.get("difference"),
                    "gain_low": gain.get("low"),
                    "gain_high": gain.get("high"),
                    "p": gain.get("p"),
                }
            )
        return found

    def table(self) -> str:
        """Plain text: a line per subset, then a line per stream."""
        subsets, gains = (text_table(*table) for table in self._tables(" "))
        return "\n".join([subsets, "", gains, "", *self._notes()])

    def markdown(self) -> str:
        """The same as a Markdown document."""
        subsets, gains = (markdown_table(*table) for table in self._tables(" to "))
        notes = "\n\n".join(self._notes())
        return f"# What each stream is worth\n\n![]({PICTURE}.svg)\n\n{subsets}\n\n{gains}\n\n{notes}\n"

    def csv(self) -> str:
        """The subsets with all digits; an empty cell is undefined."""
        records = self.records()
        return csv_text([list(records[0]), *(record.values() for record in records)])

    def _tables(self, to: str) -> tuple[tuple[list[str], list[list[str]]], tuple[list[str], list[list[str]]]]:
        subsets = [
            [
                row["streams"].replace("+", " + "),
                cell(row["mean"]) + ("" if row["std"] is None else f" ± {cell(row['std'])}"),
                cell(row["ensemble"]),
                f"{cell(row['low'])}{to}{cell(row['high'])}",
            ]
            for row in self.records()
        ]
        gains = []
        for name, difference in self.worth.items():
            mean = difference.mean
            bounds = f"{cell(mean['low'], '+')}{to}{cell(mean['high'], '+')}"
            p = "" if mean["p"] is None else f"{mean['p']:.4f}"
            gains.append([name, cell(mean["difference"], "+"), bounds, p])
        return (
            (["streams", "mean ± std over seeds", "ensemble", "95 % interval"], subsets),
            (["stream", "all streams against all but this one", "95 % interval", "p"], gains),
        )

    def _notes(self) -> list[str]:
        result = next(iter(self.results.values()))
        scored = result.valid
        notes = [
            f"Validation {METRICS[scored.metric]}, {OVER_TARGETS}. Mean ± std is over the seeds "
            f"({len(result.members)}), whose best epochs were chosen on the same clips. Ensemble: their predictions "
            f"averaged, with the interval of {scored.intervals.resamples} bootstrap resamples. p is not corrected for "
            "several streams.",
        ]
        tests = {difference.test.sentence() for difference in self.worth.values()}
        return [*notes, *sorted(tests), *scored.report.notes, *scored.intervals.warnings]


def ablate_streams(
    inputs: Inputs, out: StrPath, settings: TrainSettings, seeds: int, reporter: Reporter = SILENT
) -> StreamAblation:
    """Train a head on every subset of the streams with every seed; called again it resumes.

    All subsets are judged on the same clips; where a clip has nothing of a subset, the head predicts what it learned
    for such clips.

    Args:
        inputs: with the splits "train" and "valid", of two to five named streams.
        out: gets one folder per subset, named after its streams.
        settings: of every run, but for its seed.
        seeds: runs per subset.
        reporter: hears of runs (SUBSET/seed-I), epochs and steps.

    Raises:
        TrainSettingsError: the number of streams is another.
        RunFolderError: a folder holds something else.
        LabelError: there are labels per frame of a single validation clip, and nothing to compare over.
    """
    names, labels, folder = tuple(inputs.source.streams), inputs.splits["valid"].labels, Path(out)
    if not 2 <= len(names) <= MOST_STREAMS:
        raise TrainSettingsError(
            f"--streams compares the subsets of 2 to {MOST_STREAMS} named streams, and there are {len(names)}; give "
            "each cache as --cache NAME=PATH"
        )
    settings.for_streams(names)
    check_units(labels)
    subsets = [part for size in range(1, len(names) + 1) for part in itertools.combinations(names, size)]
    prepare(folder, [(" + ".join(part), _folder(part)) for part in subsets])
    for sentence in inputs.lacking:
        reporter.note(sentence)
    results = {
        part: train_seeds(
            inputs.of_streams(part),
            folder / _folder(part),
            settings.of_streams(part),
            seeds,
            reporter,
            reported_under=f"{_folder(part)}/",
        )
        for part in subsets
    }
    values = {
        part: read_predictions(prediction_file(folder / _folder(part), "valid", labels), labels) for part in subsets
    }
    groups = several_groups(labels)
    worth = {
        name: difference_of(values[names], values[tuple(n for n in names if n != name)], labels, groups)
        for name in names
    }
    done = StreamAblation(folder=folder, results=results, worth=worth)
    write_atomically(folder / TABLE_CSV, done.csv().encode())
    write_atomically(folder / TABLE_MD, done.markdown().encode())
    _draw(done)
    return done


def _folder(streams: Sequence[str]) -> str:
    return "+".join(streams)


def _draw(done: StreamAblation) -> None:
    from train_head.reports.figures import intervals  # matplotlib takes half a second

    metric = METRICS[next(iter(done.results.values())).valid.metric]
    subsets = [(r["streams"].replace("+", " + "), r["ensemble"], r["low"], r["high"]) for r in done.records()]
    gains = [(name, d.mean["difference"], d.mean["low"], d.mean["high"]) for name, d in done.worth.items()]
    panels = {f"{metric} of the mean of the seeds": subsets, f"what the stream adds to the others ({metric})": gains}
    intervals(panels, done.folder / PICTURE)
