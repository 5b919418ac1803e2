"""Settings of the demo data and their errors; importing this loads nothing heavy, so that `emi --help` is fast."""

from dataclasses import dataclass

from cache.errors import EmiError
from cache.settings import setting
from train_head.errors import refuse

MIN_CLIPS = 4  # two per split: Pearson needs two values
MAX_CLIPS = 100_000  # five digits
CLIPS = {"emi": 192, "va": 12}
"""Kinds of demo data, and the number of clips that each has by default."""


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

    clips: int | None = setting(
        None,
        "Number of clips, from 4 on (of videos with --kind va); the default is sized for a training of a minute.",
        shown="192, or 12 with --kind va",
    )
    seed: int = setting(0, "Random seed of voices, faces, sentences, labels and prosody.")
    faces: bool = setting(True, "Also draw the speakers, as videos; without, there is sound only.")
    kind: str = setting(
        "emi",
        "emi: six intensities per clip, as in Hume-Vidmimic2; va: valence and arousal per frame, as in Aff-Wild2.",
        metavar="|".join(CLIPS),
    )

    def __post_init__(self) -> None:
        refuse(
            (self.kind not in CLIPS, f"a demo is of kind {' or '.join(CLIPS)}, got {self.kind!r}"),
            error=DemoSettingsError,
        )
        refuse(
            (
                not MIN_CLIPS <= self.count <= MAX_CLIPS,
                f"a demo has {MIN_CLIPS} to {MAX_CLIPS} clips, got clips={self.clips}",
            ),
            (self.seed < 0, f"a seed is 0 or more, got seed={self.seed}"),
            (self.kind == "va" and not self.faces, "--kind va labels faces; leave --no-faces out"),
            error=DemoSettingsError,
        )

    @property
    def count(self) -> int:
        """The number of clips."""
        return CLIPS[self.kind] if self.clips is None else self.clips
