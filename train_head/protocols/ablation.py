"""An ablation: rows of settings, each with several seeds, every row against the one before."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from cache.paths import StrPath
from cache.system.atomic_file import write_atomically
from train_head.data.labels import read_labels
from train_head.errors import RunFolderError
from train_head.evaluation.intervals import Difference, paired_bootstrap
from train_head.protocols.members import several_groups
from train_head.protocols.result import ProtocolResult
from train_head.protocols.rows import Row, check_names
from train_head.protocols.seeds import train_seeds
from train_head.reports.tables import OVER_TARGETS, cell, markdown_table, text_table
from train_head.runs.inputs import Inputs
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings

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

        `pearson_mean` and `pearson_std` are over the seeds; `ensemble` is the mean of the seeds, with bootstrap bounds;
        `difference` and `p` compare it with the row before; the targets' columns are means over the seeds.
        """
        found = []
        for name, result, difference in zip(self.names, self.results, self.differences, strict=True):
            scored, mean = result.valid, difference.mean if difference else {}
            found.append(
                {
                    "row": name,
                    "seeds": len(result.members),
                    "pearson_mean": scored.mean,
                    "pearson_std": scored.std,
                    "ensemble": scored.report.mean_pearson,
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
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return text.getvalue()

    def _cells(self, to: str) -> tuple[list[str], list[list[str]]]:
        """Header and rows."""
        header = ["", "mean ± std over seeds", "ensemble", "95 % interval", "against the row before", "p"]
        rows = []
        for record in self.records():
            spread = "" if record["pearson_std"] is None else f" ± {cell(record['pearson_std'])}"
            interval = f"{cell(record['low'])}{to}{cell(record['high'])}"
            known = record["p"] is not None
            versus = (cell(record["difference"], "+"), f"{record['p']:.4f}") if known else ("", "")
            figures = (cell(record["pearson_mean"]) + spread, cell(record["ensemble"]), interval)
            rows.append([record["row"], *figures, *versus])
        return header, rows

    def _notes(self) -> list[str]:
        scored = self.results[0].valid
        drawn = "clips" if scored.intervals.groups is None else f"{scored.intervals.groups} groups"
        notes = [
            f"Validation Pearson, {OVER_TARGETS}. Mean ± std is over the seeds ({len(self.results[0].members)}), whose "
            "best epochs were chosen on the same clips. Ensemble: their predictions averaged, with the interval of "
            f"{scored.intervals.resamples} bootstrap resamples of {drawn}; it is compared with that of the row before. "
            "p is not corrected for several rows."
        ]
        tests = {difference.test.sentence() for difference in self.differences if difference}
        return [*notes, *sorted(tests), *scored.report.notes, *scored.intervals.warnings]


def ablate(
    inputs: Inputs,
    out: StrPath,
    rows: Sequence[tuple[str, TrainSettings]],
    seeds: int,
    reporter: Reporter = SILENT,
) -> Ablation:
    """Train every row with every seed and compare each row with the one before; called again it resumes.

    Args:
        inputs: with the splits "train" and "valid".
        out: gets one folder per row, named after it.
        rows: names and settings; see `rows_settings`.
        seeds: runs per row.
        reporter: hears of runs (ROW/seed-I), epochs and steps.

    Raises:
        TrainSettingsError: no rows, or two that share a folder.
        RunFolderError: a folder holds something else.
    """
    folder, names = Path(out), [Row(name).folder for name, _ in rows]
    check_names([name for name, _ in rows])
    _prepare(folder, rows)
    results: list[ProtocolResult] = []
    differences: list[Difference | None] = []
    for i, (name, (_, settings)) in enumerate(zip(names, rows, strict=True)):
        results.append(train_seeds(inputs, folder / name, settings, seeds, reporter, reported_under=f"{name}/"))
        differences.append(_against(inputs, folder / names[i - 1], folder / name) if i else None)
    done = Ablation(
        folder=folder,
        names=tuple(name for name, _ in rows),
        results=tuple(results),
        differences=tuple(differences),
    )
    write_atomically(folder / TABLE_CSV, done.csv().encode())
    write_atomically(folder / TABLE_MD, done.markdown().encode())
    return done


def _prepare(folder: Path, rows: Sequence[tuple[str, TrainSettings]]) -> None:
    """Create the folder, or check that it holds an ablation; whether a row is the same its own folder knows."""
    if folder.exists() and not (folder / ROWS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} exists and is no ablation (it has no {ROWS}); choose a new --out")
    folder.mkdir(parents=True, exist_ok=True)
    tables = [{"name": name, "folder": Row(name).folder} for name, _ in rows]
    write_atomically(folder / ROWS, tomli_w.dumps({"row": tables}).encode())


def _against(inputs: Inputs, before: Path, after: Path) -> Difference:
    labels = inputs.splits["valid"].labels
    new, old = (read_labels(p / "predictions_valid.csv", check_range=False).values for p in (after, before))
    return paired_bootstrap(new, old, labels.values, labels.names, groups=several_groups(labels))
