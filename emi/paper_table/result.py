"""The finished Table 1: as CSV, Markdown, plain text and a picture, with the paper's numbers beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from cache.system.atomic_file import write_atomically
from emi.paper_table.rows import PaperRow
from train_head.protocols import Outcome, ProtocolResult
from train_head.reports.tables import OVER_TARGETS, cell, csv_text, markdown_table, text_table

CSV, MARKDOWN, PLOT = "table1.csv", "table1.md", "table1"
_NOTES = (
    f"Pearson, {OVER_TARGETS}; of validation, mean and standard deviation over the seeds. The paper's numbers "
    "are on Hume-Vidmimic2; on other data only the steps between rows compare. The best epochs were chosen on the "
    "validation clips. Ensemble and test: the seeds' predictions averaged.",
    "The official baselines are linear layers on mean features, and have no validation figure. The paper does not "
    "describe its vision-only and multimodal systems: heads marked (ours) stand in for them.",
)


@dataclass(frozen=True)
class MadeRow:
    """A finished row.

    Attributes:
        row: the paper's.
        outcome: its runs.
        features: what it was trained on.
        head: what was trained.
    """

    row: PaperRow
    outcome: Outcome
    features: str
    head: str


@dataclass(frozen=True)
class Table1:
    """The finished rows.

    Attributes:
        folder: holds the runs of each row, table1.csv, table1.md and the plot.
        rows: in the paper's order.
        left_out: sentences on the rows that could not be made.
    """

    folder: Path
    rows: tuple[MadeRow, ...]
    left_out: tuple[str, ...] = ()

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        return all(made.outcome.nothing_to_do for made in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """Return one dict per row: the columns of table1.csv; None where there is no number."""
        found = []
        for made in self.rows:
            row, result = made.row, cast(ProtocolResult, made.outcome.result)
            scored, on_all = result.valid, made.outcome.on_all and made.outcome.on_all.test_report
            found.append(
                {
                    "row": row.name,
                    "features": made.features,
                    "head": made.head,
                    "seeds": len(result.members),
                    "valid": scored.mean,
                    "valid_std": scored.std,
                    "ensemble": scored.report.mean_pearson,
                    "low": scored.intervals.mean_low,
                    "high": scored.intervals.mean_high,
                    "test": result.test.report.mean_pearson if result.test else None,
                    "test_on_all": on_all.mean_pearson if on_all else None,
                    "paper_valid": row.valid,
                    "paper_test": row.test,
                    "paper_test_on_all": row.test_on_all,
                }
            )
        return found

    def csv(self) -> str:
        """Return all digits; an empty cell means that there is no number."""
        records = self.records()
        return csv_text([list(records[0]), *(record.values() for record in records)])

    def markdown(self) -> str:
        """Return the table with the paper's numbers beside yours."""
        header = ["", "features", "head", "validation, mean ± std over seeds", "ensemble", "95 % interval", "test"]
        header += ["test, trained on all", "paper: validation", "test", "test, trained on all"]
        rows = []
        for record in self.records():
            c = {key: cell(value, undefined="") for key, value in record.items() if key not in _TEXTS}
            spread = f" ± {c['valid_std']}" if c["valid_std"] else ""
            ours = (f"{c['valid']}{spread}", c["ensemble"], f"{c['low']} to {c['high']}", c["test"], c["test_on_all"])
            papers = (c["paper_valid"], c["paper_test"], c["paper_test_on_all"])
            rows.append([*(record[key] for key in _TEXTS), *ours, *papers])
        return "\n".join(["# Table 1", "", markdown_table(header, rows), "", "\n\n".join(self._notes()), ""])

    def table(self) -> str:
        """Return plain text: a line of numbers per row, then what each row is."""
        header = ["", "valid", "± std", "ensemble", "low", "high", "test", "on all", "paper: valid", "test", "on all"]
        numbers, kinds = [], []
        for record in self.records():
            values = [value for key, value in record.items() if key not in (*_TEXTS, "seeds")]
            numbers.append([record["row"], *(cell(value, undefined="—") for value in values)])
            kinds.append(f"{record['row']}: {record['features']}; {record['head']}")
        return "\n".join([text_table(header, numbers), "", *kinds, "", *self._notes()])

    def write(self) -> None:
        """Write table1.csv, table1.md and the plot."""
        write_atomically(self.folder / CSV, self.csv().encode())
        write_atomically(self.folder / MARKDOWN, self.markdown().encode())
        self._draw()

    def _notes(self) -> list[str]:
        scored = cast(ProtocolResult, self.rows[0].outcome.result).valid
        return [*_NOTES, *self.left_out, *scored.report.notes, *scored.intervals.warnings]

    def _draw(self) -> None:
        """Bars with intervals, and the paper's numbers as points."""
        from matplotlib.figure import Figure

        from train_head.reports.figures import drawing, save

        records, at = self.records(), np.arange(len(self.rows))
        tops = np.array([r["ensemble"] or 0.0 for r in records])
        lows, highs = (
            np.array([top if r[end] is None else r[end] for r, top in zip(records, tops, strict=True)])
            for end in ("low", "high")
        )
        papers = np.array([np.nan if r["paper_valid"] is None else r["paper_valid"] for r in records])
        with drawing():
            figure = Figure(figsize=(7, 1.6 + 0.36 * len(at)), dpi=150, layout="constrained")
            axes = figure.subplots()
            axes.barh(at, tops, height=0.6, color="0.6", label="ensemble of the seeds, 95 % interval")
            reach = np.maximum(0.0, [tops - lows, highs - tops])
            axes.errorbar(tops, at, xerr=reach, fmt="none", ecolor="black", capsize=4)
            axes.plot(papers, at, "D", color="black", label="the paper's, on Hume-Vidmimic2")
            axes.set_yticks(at, [made.row.name for made in self.rows])
            axes.invert_yaxis()
            axes.set_title(f"validation Pearson, {OVER_TARGETS}", loc="left")
            figure.legend(loc="outside lower left", ncols=2, fontsize=9)
            save(figure, self.folder / PLOT)


_TEXTS = ("row", "features", "head")
