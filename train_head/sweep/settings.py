"""Settings of a sweep; importing this module loads neither torch nor Optuna, so that `emi --help` is fast."""

from dataclasses import dataclass

from cache.settings import setting
from train_head.errors import check_known, refuse

SAMPLERS = ("tpe", "random")
PRUNERS = ("asha", "hyperband", "median", "none")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """How many trials there are, how their settings are drawn, what they are trained on, and what follows them.

    Raises:
        TrainSettingsError: an unknown sampler or pruner, or a number that is too small.
    """

    trials: int = setting(64, "Number of trials, those of other machines included; give more later to add some.")
    jobs: int | None = setting(None, "Worker processes.", shown="one per core")
    sampler: str = setting("tpe", "tpe (learns from finished trials) or random.")
    pruner: str = setting("asha", "Stops trials that lag behind: asha, hyperband, median or none.")
    pool: int = setting(1, "Trials see the means of this many consecutive frames.")
    pca: int | None = setting(None, "Trials see this many principal components.", shown="all features")
    clips: int | None = setting(None, "Trials train on this many clips, drawn once.", shown="all")
    top: int = setting(
        3, "Train this many of the best trials again, on all clips and the full features; 0 trains none."
    )
    seeds: int = setting(3, "Train each of the best with this many seeds: --seed, --seed + 1, and so on.")
    seed: int = setting(0, "Random seed of the sampler, of the drawn clips and of every trial.")
    storage: str | None = setting(
        None,
        "PostgreSQL URL, postgresql://USER:PASSWORD@HOST/DATABASE, from which several machines take their trials.",
        shown="a journal in the run folder",
    )
    heartbeat: int = setting(10, "Seconds between signs of life to that server.")

    def __post_init__(self) -> None:
        for name, known in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
            check_known(name, [getattr(self, name)], known)
        lowest = {"trials": 1, "jobs": 1, "pool": 1, "pca": 1, "clips": 2, "top": 0, "seeds": 1, "seed": 0}
        given = [(name, getattr(self, name)) for name in lowest if getattr(self, name) is not None]
        refuse(*((n < lowest[name], f"{name} must be {lowest[name]} or more, got {n}") for name, n in given))
