"""How a recipe is validated: one run, several seeds, folds, and whether all clips are trained on afterwards."""

from dataclasses import dataclass

from cache.settings import setting
from train_head.errors import TrainSettingsError


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How many runs are trained, and on which clips each is validated; by default one, on the validation split.

    Raises:
        TrainSettingsError: these do not go together.
    """

    seeds: int | None = setting(
        None, "Train N runs with consecutive seeds, from --seed on, into OUT/seed-0, …; OUT predicts their mean."
    )
    folds: int | None = setting(
        None, "Cross-validation: cut the clips into N folds, each predicted by a run that was not trained on it."
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
        if self.seeds is not None and self.seeds < 1:
            raise TrainSettingsError(f"seeds must be 1 or more, got {self.seeds}")
        if self.only_fold is not None and self.folds is None:
            raise TrainSettingsError(f"--only-fold {self.only_fold} is one of --folds N; give their number too")
        if self.only_fold is not None and self.folds is not None and not 0 <= self.only_fold < self.folds:
            raise TrainSettingsError(
                f"--only-fold takes 0 to {self.folds - 1}, as the folders of {self.folds} folds are called (fold-0, "
                f"…), got {self.only_fold}"
            )
        if self.folds is not None and self.seeds is not None:
            raise TrainSettingsError("--seeds and --folds do not go together: each fold has one seed; leave one out")
        if self.folds is not None and self.on_all:
            raise TrainSettingsError(
                "--train-on-all needs the best epoch of one validation split, and folds have none in common; leave out "
                "--folds or --train-on-all"
            )

    def check_split(self, valid: object | None) -> None:
        """Refuse to train without a validation split, unless folds are cut.

        Args:
            valid: label CSV of the validation split; None where none is given.

        Raises:
            TrainSettingsError: there is none.
        """
        if self.folds is None and valid is None:
            raise TrainSettingsError(
                "there is no validation split; give --valid CSV, or --folds N to validate on --train"
            )
