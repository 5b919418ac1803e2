"""What backbones take: sound or faces.

To add a modality, write a folder like `extract/audio` with a `Modality`, and add a line to `MODALITIES`. A backbone
says which one it takes (`Identity.modality`).
"""

from extract.audio.modality import AUDIO
from extract.faces.modality import FACE
from extract.modality.protocol import Modality

MODALITIES: dict[str, Modality] = {"audio": AUDIO, "face": FACE}
