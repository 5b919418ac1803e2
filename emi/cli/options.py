"""The options that several commands share, each in one wording."""

from pathlib import Path
from typing import Annotated

import typer

Media = Annotated[str, typer.Option(help="Folder of the media, a CSV with a Filename column, or a text list.")]
MediaRoot = Annotated[Path | None, typer.Option(help="Where the paths of a CSV or list start.")]
Backbone = Annotated[str, typer.Option(help="silero, a Hugging Face id, or a local folder.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face id [default: main].")]
Caches = Annotated[list[str], typer.Option(help="Feature cache; repeat it for clips spread over several.")]

Track = Annotated[
    int | None,
    typer.Option(metavar="N", help="Audio track, counted from 1 [default: the one marked default, else the first]."),
]
AllowTruncated = Annotated[
    bool, typer.Option("--allow-truncated", help="Use files that are cut off or damaged as far as they decode.")
]

Train = Annotated[Path, typer.Option(help="Label CSV of the training split.")]
Valid = Annotated[Path, typer.Option(help="Label CSV of the validation split, by which runs are compared.")]
BestEpochValid = Annotated[
    Path | None, typer.Option(help="Label CSV by which the best epoch is chosen; with --folds, more clips to cut.")
]
Test = Annotated[Path | None, typer.Option(help="CSV of a third split to predict; targets may be missing.")]
LabelScale = Annotated[
    float | None, typer.Option(help="100 for labels from 0 to 100; predictions stay between 0 and 1 [default: 1].")
]
LabelRange = Annotated[
    str | None,
    typer.Option(
        metavar="MIN,MAX", help="-1,1 or 1,5: ends of the labels' scale, which predictions keep [default: 0,1]."
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Label columns to predict [default: every column of numbers]."),
]
Rater = Annotated[
    str | None, typer.Option(help="Label column that names the rater, where clips have a row for each of several.")
]
GroupBy = Annotated[
    str | None,
    typer.Option(help="Who speaks: label column, or regex on Filename. Splits and folds then share no group."),
]
ResampleBy = Annotated[
    str | None,
    typer.Option(
        "--group-by", help="Resample whole groups, a speaker's clips for example: label column, or regex on Filename."
    ),
]
RunsLabelScale = Annotated[
    float | None, typer.Option("--label-scale", help="100 for labels from 0 to 100 [default: as the runs].")
]
SkipUncached = Annotated[bool, typer.Option("--skip-missing", help="Leave out labelled clips that no cache holds.")]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-missing", help="Leave out labelled clips whose media are missing or unreadable.")
]

Lr = Annotated[float | None, typer.Option(help="Peak learning rate of the head [default: 1e-4].")]
Epochs = Annotated[int | None, typer.Option(help="[default: 30]")]
Seed = Annotated[int | None, typer.Option(help="The first seed [default: 0].")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or auto [default: auto].")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, as in a TOML file: --set ema=0.99; repeat."),
]
Freeze = Annotated[
    str | None, typer.Option(help="What never learns: none, cnn, layers:N (and all below) or backbone [default: cnn].")
]
BackboneLr = Annotated[float | None, typer.Option(help="Peak learning rate of the backbone [default: 1e-5].")]
BatchSeconds = Annotated[
    float | None, typer.Option(help="Audio on a device at once: memory; 0: 24 on a CPU, 120 on CUDA [default: 0].")
]
Checkpointing = Annotated[
    bool | None, typer.Option(help="Less memory for more time: compute activations twice [default: off].")
]

Seeds = Annotated[
    int | None, typer.Option(help="Train so many runs, from --seed on, in OUT/seed-0, …; OUT averages them.")
]
RowSeeds = Annotated[int, typer.Option(min=1, help="Runs per row.")]
Folds = Annotated[
    int | None, typer.Option(help="Cut the clips into so many folds, each predicted by a run that did not see it.")
]
OnlyFold = Annotated[
    int | None, typer.Option(help="Of --folds N train this one only, from 0: a job each; the last one joins them.")
]
TrainOnAll = Annotated[
    bool, typer.Option("--train-on-all", help="Then train on all clips for the best epoch count, in OUT/all.")
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Write each epoch's figures into RUN/tensorboard too.")
]
