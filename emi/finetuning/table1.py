"""The paper's Table 1 for audio on any data: frozen, + global vector, + unfrozen, + dropout, and train+val."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from cache.errors import StaleCacheError
from cache.ids import match_ids
from cache.paths import StrPath
from cache.reader import open_cache
from cache.system.atomic_file import write_atomically
from emi.finetuning.local_processes import check_processes
from emi.finetuning.settings import FinetuneSettings, resolve
from emi.finetuning.sharding import check_sharding
from emi.finetuning.start import FinetuneData, check_backbone, finetune, on_this_machine
from extract.backbones import identify
from extract.plan import make_header
from extract.run import extract
from extract.settings import ExtractSettings
from train_head.data.labels import Labels
from train_head.errors import TrainSettingsError
from train_head.protocols import Outcome, ProtocolResult, train
from train_head.protocols.pool import check_apart
from train_head.reports.tables import OVER_TARGETS, cell, csv_text, markdown_table, text_table
from train_head.runs.inputs import check_disjoint_splits, gather_inputs
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings
from train_head.validation import Validation

FEATURES, AUDIO, CSV, MARKDOWN, PLOT = "features.zarr", "audio", "table1.csv", "table1.md", "table1"


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One row of the paper's table.

    Attributes:
        name: as it is printed.
        folder: of its runs.
        overrides: settings of the head.
        unfrozen: whether the backbone learns.
        valid: the paper's mean validation Pearson on Hume-Vidmimic2.
        test: its test figure, where it gives one.
        test_on_all: the same, trained on training and validation clips.
    """

    name: str
    folder: str
    overrides: dict[str, Any] = field(default_factory=dict)
    unfrozen: bool = False
    valid: float
    test: float | None = None
    test_on_all: float | None = None


ROWS = (
    PaperRow(name="frozen, LSTM", folder="frozen", overrides={"global_vector": False, "dropout": 0.0}, valid=0.262),
    PaperRow(
        name="+ global vector", folder="global-vector", overrides={"global_vector": True, "dropout": 0.0}, valid=0.280
    ),
    PaperRow(
        name="+ unfrozen",
        folder="unfrozen",
        overrides={"global_vector": True, "dropout": 0.0},
        unfrozen=True,
        valid=0.386,
        test=0.461,
        test_on_all=0.522,
    ),
    PaperRow(
        name="+ dropout",
        folder="dropout",
        overrides={"global_vector": True, "dropout": 0.1},
        unfrozen=True,
        valid=0.389,
        test=0.465,
        test_on_all=0.554,
    ),
)
"""arXiv 2403.11879, Table 1."""


@dataclass(frozen=True)
class Table1:
    """The finished rows.

    Attributes:
        folder: holds the runs of each row, table1.csv, table1.md and the plot.
        outcomes: of each row.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether all was finished before."""
        return all(outcome.nothing_to_do for outcome in self.outcomes)

    def records(self) -> list[dict[str, Any]]:
        """Return one dict per row: the columns of table1.csv; None where there is no number."""
        found = []
        for row, outcome in zip(ROWS, self.outcomes, strict=True):
            result = cast(ProtocolResult, outcome.result)
            scored, on_all = result.valid, outcome.on_all and outcome.on_all.test_report
            found.append(
                {
                    "row": row.name,
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
        header = ["", "validation, mean ± std over seeds", "ensemble", "95 % interval", "test", "test, trained on all"]
        header += ["paper: validation", "test", "test, trained on all"]
        rows = []
        for record in self.records():
            c = {key: cell(value, undefined="") for key, value in record.items() if key != "row"}
            spread = f" ± {c['valid_std']}" if c["valid_std"] else ""
            ours = (f"{c['valid']}{spread}", c["ensemble"], f"{c['low']} to {c['high']}")
            papers = (c["paper_valid"], c["paper_test"], c["paper_test_on_all"])
            rows.append([record["row"], *ours, c["test"], c["test_on_all"], *papers])
        return "\n".join(["# Table 1", "", markdown_table(header, rows), "", "\n\n".join(self._notes()), ""])

    def table(self) -> str:
        """Return plain text, one line per row."""
        header = ["", "valid", "± std", "ensemble", "low", "high", "test", "on all", "paper: valid", "test", "on all"]
        rows = []
        for record in self.records():
            name, _, *values = record.values()
            rows.append([name, *(cell(value, undefined="—") for value in values)])
        return "\n".join([text_table(header, rows), "", *self._notes()])

    def _notes(self) -> list[str]:
        scored = cast(ProtocolResult, self.outcomes[0].result).valid
        return [_NOTE, *scored.report.notes, *scored.intervals.warnings]


_NOTE = (
    f"Pearson, {OVER_TARGETS}; of validation, mean and standard deviation over the seeds. The paper's numbers "
    "are on Hume-Vidmimic2; on other data only the steps between rows compare. The best epochs were chosen on the "
    "validation clips. Ensemble and test: the seeds' predictions averaged."
)


def table1(
    data: FinetuneData,
    out: StrPath,
    *,
    seeds: int = 3,
    config: StrPath | None = None,
    reporter: Reporter = SILENT,
    **settings: Any,
) -> Table1:
    """Run every row; called again it resumes with the first unfinished row.

    The frozen rows train on features extracted once, into OUT/features.zarr; the others train end to end.

    Args:
        data: media, labels and backbone; with a test split the unfrozen rows are trained on train and valid as well.
        out: folder; gets one folder of seeds per row, table1.csv, table1.md and table1.svg.
        seeds: runs per row.
        config: TOML file of settings that the rows share.
        reporter: hears of rows, media, runs and epochs.
        **settings: of the heads and of the backbone, as for `emi.finetune`.

    Raises:
        EmiError: see `emi.finetuning.start.finetune`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise TrainSettingsError("emi table1 runs in no torchrun; give --set processes=N, or train its rows one by one")
    folder, tested = Path(out), "test" in data.label_files.files
    resolved = [resolve(config, **(settings | row.overrides)) for row in ROWS]
    _check(data, resolved[-1])
    labels = data.label_files.read()
    check_disjoint_splits(labels)
    if tested and not data.label_files.skip_missing:  # which clips are left is known later
        check_apart(labels["train"], labels["valid"])
    _extract(data, folder / FEATURES, *resolved[0], labels, reporter)
    data = replace(data, audio=folder / AUDIO)
    outcomes = []
    for row, (of_head, tuning) in zip(ROWS, resolved, strict=True):
        reporter.row_started(row.name)
        validation = Validation(seeds=seeds, on_all=tested and row.unfrozen)
        if row.unfrozen:
            outcomes.append(finetune(data, folder / row.folder, of_head, tuning, validation, reporter))
        else:
            inputs = gather_inputs(folder / FEATURES, data.label_files)
            outcomes.append(train(inputs, folder / row.folder, of_head, validation, reporter))
    done = Table1(folder, tuple(outcomes))
    write_atomically(folder / CSV, done.csv().encode())
    write_atomically(folder / MARKDOWN, done.markdown().encode())
    _draw(done)
    return done


def _check(data: FinetuneData, last: tuple[TrainSettings, FinetuneSettings]) -> None:
    """Refuse what the unfrozen rows cannot do, before the others are trained."""
    settings, tuning = last
    if tuning.freeze == "backbone":
        raise TrainSettingsError("freeze backbone leaves nothing to the unfrozen rows; give none, cnn or layers:N")
    identity = identify(data.backbone)
    check_sharding(tuning, tuning.processes)
    check_processes(tuning.processes, on_this_machine(settings, identity).device)
    check_backbone(identity, settings, tuning)


def _extract(
    data: FinetuneData,
    cache: Path,
    settings: TrainSettings,
    tuning: FinetuneSettings,
    labels: Mapping[str, Labels],
    reporter: Reporter,
) -> None:
    """Extract in the precision and on the device of the unfrozen rows."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    how = ExtractSettings(
        backbone=data.backbone,
        max_seconds=tuning.max_seconds,
        precision=settings.precision,
        device=settings.device,
        media_root=str(data.media_root) if data.media_root is not None else None,
        track=tuning.decoding.track,
        allow_truncated=tuning.allow_truncated,
    )
    try:
        extract(data.media, cache, how, on_progress=reporter.clip_decoded)
    except StaleCacheError as error:
        if not _whole_by_older_decoder(cache, how, labels):
            raise StaleCacheError(f"{error}; for that, remove {cache}") from error


def _whole_by_older_decoder(cache: Path, how: ExtractSettings, labels: Mapping[str, Labels]) -> bool:
    """Return whether a cache holds every labelled clip and differs in the decoder only: its rows stay as they are."""
    with open_cache(cache) as store:
        there = dict(store.header.fingerprint)
        wanted = dict(make_header(identify(how.backbone), how, there["precision"]).fingerprint)
        names = [name for part in labels.values() for name in part.filenames]
        held = None not in match_ids(names, store.ids)
    return held and {**there, "decoder": 0} == {**wanted, "decoder": 0}


def _draw(done: Table1) -> None:
    """Bars with intervals, and the paper's numbers as points."""
    from matplotlib.figure import Figure

    from train_head.reports.figures import drawing, save

    records, at = done.records(), range(len(ROWS))
    tops = np.array([r["ensemble"] or 0.0 for r in records])
    lows, highs = (
        np.array([top if r[end] is None else r[end] for r, top in zip(records, tops, strict=True)])
        for end in ("low", "high")
    )
    with drawing():
        figure = Figure(figsize=(7, 3.6), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.bar(at, tops, width=0.6, color="0.6", label="ensemble of the seeds, 95 % interval")
        reach = np.maximum(0.0, [tops - lows, highs - tops])
        axes.errorbar(at, tops, yerr=reach, fmt="none", ecolor="black", capsize=4)
        axes.plot(at, [row.valid for row in ROWS], "D", color="black", label="the paper's, on Hume-Vidmimic2")
        axes.set_xticks(list(at), [row.name for row in ROWS])
        axes.set_title(f"validation Pearson, {OVER_TARGETS}", loc="left")
        axes.set_ylim(min(0.0, *tops), 1.35 * max(*highs, 0.39))
        axes.legend(loc="upper left", fontsize=9)
        save(figure, done.folder / PLOT)
