"""Settings of the demo data and their errors; importing this loads nothing heavy, so that `emi --help` is fast."""

from dataclasses import dataclass

from cache.errors import EmiError
from cache.settings import setting
from train_head.errors import refuse

MIN_CLIPS = 4  # two per split: Pearson needs two values
MAX_CLIPS = 100_000  # five digits


class DemoDependencyError(EmiError, ImportError):
    """A package that only the demo data need is not installed."""


class DemoSettingsError(EmiError, ValueError):
    """A setting of the demo data is out of its range."""


class DemoFolderError(EmiError, FileExistsError):
    """The target folder holds something that must not be overwritten."""


class SpeechError(EmiError, RuntimeError):
    """espeak-ng did not speak."""


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Which demo is made; the same settings give the same bytes.

    Raises:
        DemoSettingsError: a number is out of range.
    """

    clips: int = setting(128, "Number of clips, from 4 on; the default is sized for a training of a minute.")
    seed: int = setting(0, "Random seed of voices, sentences, intensities and prosody.")

    def __post_init__(self) -> None:
        refuse(
            (
                not MIN_CLIPS <= self.clips <= MAX_CLIPS,
                f"a demo has {MIN_CLIPS} to {MAX_CLIPS} clips, got clips={self.clips}",
            ),
            (self.seed < 0, f"a seed is 0 or more, got seed={self.seed}"),
            error=DemoSettingsError,
        )
