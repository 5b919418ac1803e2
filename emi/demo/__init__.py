"""Demo data: synthetic speech with made-up intensities, in the layout of Hume-Vidmimic2."""

from emi.demo.errors import DemoDependencyError, DemoFolderError, DemoSettingsError, SpeechError
from emi.demo.layout import DemoSummary
from emi.demo.make import DEFAULT_CLIPS, make_demo

__all__ = [
    "DEFAULT_CLIPS",
    "DemoDependencyError",
    "DemoFolderError",
    "DemoSettingsError",
    "DemoSummary",
    "SpeechError",
    "make_demo",
]
