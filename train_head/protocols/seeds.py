"""One recipe with several seeds: how much of a result is chance, and the mean of the runs as a better predictor."""

from dataclasses import replace
from pathlib import Path

from cache.paths import StrPath
from train_head.errors import RunFolderError, TrainSettingsError
from train_head.protocols.members import listed_members, prepare_protocol, write_ensemble, write_mean, write_summary
from train_head.protocols.result import ProtocolResult
from train_head.runs.inputs import Inputs, rater_agreement
from train_head.runs.train import train_run
from train_head.training.loop import SILENT, Reporter
from train_head.training.settings import TrainSettings, with_seed

CHOSEN = (
    "Each run's best epoch was chosen on the validation clips, so the validation figures are optimistic for new ones."
)


def train_seeds(
    inputs: Inputs,
    out: StrPath,
    settings: TrainSettings,
    seeds: int,
    reporter: Reporter = SILENT,
    *,
    reported_under: str = "",
) -> ProtocolResult:
    """Train one run per seed into out/seed-0, out/seed-1, …; called again it resumes, or adds the missing ones.

    Args:
        inputs: with the splits "train" and "valid", perhaps "test".
        out: folder of the runs; gets predictions_valid.csv (and _test), the means of theirs, summary.json, README.md
            and ensemble.toml, which lists them once all are finished.
        settings: of every run, but for the seed, which is `settings.seed` + the run's number.
        seeds: number of runs.
        reporter: hears of runs, epochs and steps.
        reported_under: what precedes the names of the runs that it hears.

    Raises:
        TrainSettingsError: fewer than one seed.
        RunFolderError: the folder holds something else, or more seeds.
        LabelError: training and validation share a group.
    """
    if seeds < 1:
        raise TrainSettingsError(f"seeds must be 1 or more, got {seeds}")
    settings, folder = settings.on_this_machine(), Path(out)
    inputs.check_groups()
    members = tuple(f"seed-{i}" for i in range(seeds))
    prepare_protocol(folder, settings, inputs, {"kind": "seeds"})
    before = listed_members(folder)
    if len(before) > seeds:
        raise RunFolderError(f"{folder} holds {len(before)} seeds already, got {seeds}; ask for as many or more")
    results = []
    for i, name in enumerate(members):
        of_run = with_seed(settings, settings.seed + i)
        reporter.run_started(f"{reported_under}{name}", folder / name, of_run)
        part = replace(inputs, protocol={"kind": "seed", "number": i})
        results.append(train_run(part, folder / name, of_run, reporter=reporter))
    trained = sum(len(result.history) - result.resumed_at for result in results)
    train = inputs.splits["train"].labels
    scored = {
        name: write_mean(folder, name, [result.predictions[name] for result in results], split.labels, train)
        for name, split in inputs.splits.items()
        if name != "train"
    }
    valid = scored["valid"]
    assert valid is not None
    done = ProtocolResult(
        folder=folder,
        kind="seeds",
        members=members,
        best_epochs=tuple(result.best_epoch for result in results),
        valid=valid,
        test=scored.get("test"),
        agreement=rater_agreement(inputs.splits["valid"].labels),
        notes=(CHOSEN, *([f"{inputs.overlap}."] if inputs.overlap else [])),
        skipped=inputs.skipped,
        epochs_trained=trained,
        nothing_to_do=trained == 0 and before == members,
    )
    write_summary(done, settings, inputs, f"{seeds} seeds of one head for {', '.join(train.names)}")
    write_ensemble(folder, "seeds", members)
    return done
