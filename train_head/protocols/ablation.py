"""An ablation: rows of settings, each with several seeds, every row against the one before."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.predictions import prediction_file, read_predictions
from train_head.errors import RunFolderError, TrainSettingsError, check_known, refuse
from train_head.evaluation.intervals import Difference
from train_head.evaluation.labelled import check_units, difference_of, several_groups
from train_head.evaluation.metrics import METRICS
from train_head.protocols.result import ProtocolResult
from train_head.protocols.run import train_seeds
from train_head.reports.tables import OVER_TARGETS, cell, csv_text, markdown_table, text_table
from train_head.runs.inputs import Inputs
from train_head.toml_file import read_toml
from train_head.training.compatibility import check_targets
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings, option_owners, resolve_settings

SHARED = ("seed", "label_scale", "label_range", "label_fps")
"""Settings that all rows have in common: the labels are read once, and every row takes the same seeds."""


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as it is printed.
        overrides: settings in which it differs from the base, options of the head and of augmentation among them.
        streams: names of those that it reads; all where there are none.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    streams: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """The name as a folder: `lstm-global-vector`."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


PAPER_ROWS = (
    Row("mean pooling", {"head": "mean"}),
    Row("LSTM", {"head": "lstm", "global_vector": False, "dropout": 0.0}),
    Row("LSTM + global vector", {"head": "lstm", "global_vector": True, "dropout": 0.0}),
    Row("LSTM + global vector + dropout", {"head": "lstm", "global_vector": True, "dropout": 0.1}),
)
"""The rows with a frozen backbone of the paper's Table 1 (arXiv 2403.11879), each with one part more."""

ROWS, TABLE_CSV, TABLE_MD = "ablation.toml", "ablation.csv", "ablation.md"


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A finished ablation.

    Attributes:
        folder: holds one folder of seeds per row, ablation.csv and ablation.md.
        names: the rows.
        results: the seeds of each.
        differences: each row's mean prediction against that of the row before; None for the first.
    """

    folder: Path
    names: tuple[str, ...]
    results: tuple[ProtocolResult, ...]
    differences: tuple[Difference | None, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        return all(result.nothing_to_do for result in self.results)

    def records(self) -> list[dict[str, Any]]:
        """One dict per row, with None for what is undefined: the columns of ablation.csv.

        `pearson_mean` and `pearson_std` (`ccc_…` for labels per frame) are over the seeds; `ensemble` is the mean of
        the seeds, with bootstrap bounds; `difference` and `p` compare it with the row before; the targets' columns are
        means over the seeds.
        """
        found = []
        for name, result, difference in zip(self.names, self.results, self.differences, strict=True):
            scored, mean = result.valid, difference.mean if difference else {}
            found.append(
                {
                    "row": name,
                    "seeds": len(result.members),
                    f"{scored.metric}_mean": scored.mean,
                    f"{scored.metric}_std": scored.std,
                    "ensemble": scored.report.mean(scored.metric),
                    "low": scored.intervals.mean_low,
                    "high": scored.intervals.mean_high,
                    "difference": mean.get("difference"),
                    "p": mean.get("p"),
                }
                | {target: values[0] for target, values in scored.per_target.items()}
            )
        return found

    def table(self) -> str:
        """Plain text, one line per row."""
        return "\n".join([text_table(*self._cells(" ")), "", *self._notes()])

    def markdown(self) -> str:
        """The same as a Markdown document."""
        notes = "\n\n".join(self._notes())
        return f"# Ablation\n\n{markdown_table(*self._cells(' to '))}\n\n{notes}\n"

    def csv(self) -> str:
        """The same with all digits; an empty cell is undefined."""
        records = self.records()
        return csv_text([list(records[0]), *(record.values() for record in records)])

    def _cells(self, to: str) -> tuple[list[str], list[list[str]]]:
        header = ["", "mean ± std over seeds", "ensemble", "95 % interval", "against the row before", "p"]
        rows, metric = [], self.results[0].valid.metric
        for record in self.records():
            spread = "" if record[f"{metric}_std"] is None else f" ± {cell(record[f'{metric}_std'])}"
            interval = f"{cell(record['low'])}{to}{cell(record['high'])}"
            figures = (cell(record[f"{metric}_mean"]) + spread, cell(record["ensemble"]), interval)
            p = "" if record["p"] is None else f"{record['p']:.4f}"
            rows.append([record["row"], *figures, p and cell(record["difference"], "+"), p])
        return header, rows

    def _notes(self) -> list[str]:
        scored = self.results[0].valid
        drawn = f"{scored.intervals.groups} groups" if scored.intervals.grouped else "clips"
        notes = [
            f"Validation {METRICS[scored.metric]}, {OVER_TARGETS}. Mean ± std is over the seeds "
            f"({len(self.results[0].members)}), whose best epochs were chosen on the same clips. Ensemble: their "
            f"predictions averaged, with the interval of {scored.intervals.resamples} bootstrap resamples of {drawn}; "
            "it is compared with that of the row before. p is not corrected for several rows."
        ]
        tests = {difference.test.sentence() for difference in self.differences if difference}
        return [*notes, *sorted(tests), *scored.report.notes, *scored.intervals.warnings]


def ablate(
    inputs: Inputs,
    out: StrPath,
    rows: Sequence[tuple[str, TrainSettings]],
    seeds: int,
    reporter: Reporter = SILENT,
    *,
    streams: Mapping[str, Sequence[str]] | None = None,
) -> Ablation:
    """Train every row with every seed and compare each row with the one before; called again it resumes.

    Args:
        inputs: with the splits "train" and "valid".
        out: gets one folder per row, named after it.
        rows: names and settings; see `rows_settings`.
        seeds: runs per row.
        reporter: hears of runs (ROW/seed-I), epochs and steps.
        streams: by row, those that it reads; all of them where it is not there. See `rows_streams`.

    Raises:
        TrainSettingsError: no rows, two that share a folder, a row that does not go with the targets, or a stream that
            is not there.
        RunFolderError: a folder holds something else.
        LabelError: there are labels per frame of a single validation clip, and nothing to compare rows over.
    """
    folder, labels = Path(out), inputs.splits["valid"].labels
    check_names([name for name, _ in rows])
    check_units(labels)
    read = {name: (inputs, settings) for name, settings in rows}
    for name, names in (streams or {}).items():
        check_known("stream", names, inputs.source.streams, f"row {name!r}: ")
        read[name] = inputs.of_streams(names), read[name][1].of_streams(names)
    for _, settings in read.values():
        check_targets(settings, labels.targets)
    prepare(folder, [(name, Row(name).folder) for name, _ in rows])
    for sentence in inputs.lacking:
        reporter.note(sentence)
    places = {name: folder / Row(name).folder for name, _ in rows}
    results = [
        train_seeds(part, places[name], settings, seeds, reporter, reported_under=f"{places[name].name}/")
        for name, (part, settings) in read.items()
    ]
    values = [read_predictions(prediction_file(place, "valid", labels), labels) for place in places.values()]
    differences = [difference_of(now, before, labels, several_groups(labels)) for before, now in pairwise(values)]
    done = Ablation(folder=folder, names=tuple(places), results=tuple(results), differences=(None, *differences))
    write_atomically(folder / TABLE_CSV, done.csv().encode())
    write_atomically(folder / TABLE_MD, done.markdown().encode())
    return done


def rows_settings(
    rows: Sequence[Row], config: StrPath | None = None, **overrides: Any
) -> list[tuple[str, TrainSettings]]:
    """Return the settings of each row: a base, then what the row says.

    Args:
        rows: the rows.
        config: TOML file of the base; the tables of all heads may stand in it.
        **overrides: settings of the base; an option of a head goes to the rows whose head has it.

    Raises:
        TrainSettingsError: an unknown setting, or an option that no row's head has; a row sets the seed or the scale
            of the labels.
    """
    check_names([row.name for row in rows])
    given = {key: value for key, value in overrides.items() if value is not None}
    base = resolve_settings(config, **{k: v for k, v in given.items() if not option_owners(k)}).head
    settings, used = [], set[str]()
    for row in rows:
        what = "is the same for all rows; leave it out there"
        refuse(*((key in row.overrides, f"row {row.name!r}: {key} {what}") for key in SHARED))
        head = row.overrides.get("head", base)
        own = {key: v for key, v in given.items() if not option_owners(key) or head in option_owners(key)}
        used |= own.keys()
        try:
            settings.append((row.name, resolve_settings(config, **(own | dict(row.overrides)))))
        except TrainSettingsError as error:
            raise TrainSettingsError(f"row {row.name!r}: {error}") from error
    for key in given.keys() - used:
        raise TrainSettingsError(f"no row's head has the option {key!r}; leave it out")
    return settings


def rows_streams(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """Return the streams of the rows that read some of them only, by name."""
    return {row.name: row.streams for row in rows if row.streams}


def read_rows(path: StrPath) -> list[Row]:
    """Read rows from TOML: one `[[row]]` each, with a name and any settings.

    `streams` may be a list of names: those that the row reads.

    Raises:
        TrainSettingsError: no such file, not TOML, no rows, or a row without a name.
    """
    values = read_toml(path, "file of rows")
    check_known("table", values, ["row"], f"{path}: ")
    tables = values.get("row", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables) or not tables:
        raise TrainSettingsError(f'{path} has no rows; write [[row]] and name = "…" for each')
    for number, table in enumerate(tables, 1):
        if not isinstance(table.get("name"), str):
            raise TrainSettingsError(f'{path}: row {number} has no name; write name = "…" in it')
    return [_row(table) for table in tables]


def _row(table: Mapping[str, Any]) -> Row:
    settings = {key: value for key, value in table.items() if key != "name"}
    names = settings.pop("streams") if isinstance(settings.get("streams"), list) else []
    refuse(
        (
            not all(isinstance(name, str) for name in names),
            f"row {table['name']!r}: streams is a list of names or a table of settings by name, got {names}",
        )
    )
    return Row(table["name"], settings, tuple(names))


def check_names(names: Sequence[str]) -> None:
    """Refuse rows whose folders would be one.

    Raises:
        TrainSettingsError: no rows, a name without a letter or digit, or two that share a folder.
    """
    refuse((not names, "an ablation needs at least one row"))
    places: dict[str, str] = {}
    for name in names:
        place = Row(name).folder
        refuse(
            (not place, f"the row {name!r} needs a name with a letter or a digit, for its folder"),
            (place in places, f"the rows {places.get(place)!r} and {name!r} share the folder {place}; rename one"),
        )
        places[place] = name


def prepare(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Create the folder, or check that it holds an ablation; each row's folder checks that the row is the same.

    Args:
        folder: of the ablation.
        rows: name and folder of each row.
    """
    if folder.exists() and not (folder / ROWS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is no ablation (it has no {ROWS}); choose a new --out")
    folder.mkdir(parents=True, exist_ok=True)
    tables = [{"name": name, "folder": place} for name, place in rows]
    write_atomically(folder / ROWS, tomli_w.dumps({"row": tables}).encode())
