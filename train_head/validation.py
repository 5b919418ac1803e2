"""How a recipe is validated: one run, several seeds, folds, and whether all clips are trained on afterwards."""

from dataclasses import dataclass

from cache.settings import setting
from train_head.errors import TrainSettingsError

OFFICIAL6 = "official6"
"""Folds of systems for valence and arousal (arXiv 2403.12425): five of the training split, and the validation split."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How many runs are trained, and on which clips each is validated; by default one, on the validation split.

    Raises:
        TrainSettingsError: these do not go together.
    """

    seeds: int | None = setting(
        None, "Train N runs with consecutive seeds, from --seed on, into OUT/seed-0, …; OUT predicts their mean."
    )
    folds: str | int | None = setting(
        None,
        "Cross-validation: cut the clips into N folds, each predicted by a run that was not trained on it. official6: "
        "five parts of --train in the order of their names, and --valid as the sixth.",
        metavar="N",
    )
    only_fold: int | None = setting(
        None, "Of --folds N, train only this one, from 0: one job each. The last job to finish joins the folds."
    )
    on_all: bool = setting(
        False, "Then train on all clips for the best number of epochs, into OUT/all.", option="train_on_all"
    )
    group_by: str | None = setting(
        None,
        "What names the speaker: a label column, or a regular expression on Filename. Splits and folds share no group.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.folds, str) and self.folds != OFFICIAL6:
            if not self.folds.removeprefix("-").isdecimal():
                raise TrainSettingsError(f"--folds takes a number or {OFFICIAL6}, got {self.folds!r}")
            object.__setattr__(self, "folds", int(self.folds))
        if self.seeds is not None and self.seeds < 1:
            raise TrainSettingsError(f"seeds must be 1 or more, got {self.seeds}")
        if self.only_fold is not None and self.folds is None:
            raise TrainSettingsError(f"--only-fold {self.only_fold} is one of --folds N; give their number too")
        folds = 6 if isinstance(self.folds, str) else self.folds
        if self.only_fold is not None and folds is not None and not 0 <= self.only_fold < folds:
            raise TrainSettingsError(
                f"--only-fold takes 0 to {folds - 1}, as the folders of {folds} folds are called (fold-0, …), got "
                f"{self.only_fold}"
            )
        if self.folds is not None and self.seeds is not None:
            raise TrainSettingsError("--seeds and --folds do not go together: each fold has one seed; leave one out")
        if self.folds is not None and self.on_all:
            raise TrainSettingsError(
                "--train-on-all needs the best epoch of one validation split, and folds have none in common; leave out "
                "--folds or --train-on-all"
            )

    def check_split(self, valid: object | None) -> None:
        """Refuse to train without a validation split, unless folds are cut from the training split alone.

        Args:
            valid: label CSV of the validation split; None where none is given.

        Raises:
            TrainSettingsError: there is none.
        """
        if self.folds is None and valid is None:
            raise TrainSettingsError(
                "there is no validation split; give --valid CSV, or --folds N to validate on --train"
            )
        if self.folds == OFFICIAL6 and valid is None:
            raise TrainSettingsError(f"--folds {OFFICIAL6} takes the validation split as its sixth fold; give --valid")
