"""The face detector MTCNN (Zhang et al. 2016, arXiv 1604.02878) in torch, batched over pictures."""

from extract.faces.mtcnn.detector import Detector, DetectorSettings, Faces

__all__ = ["Detector", "DetectorSettings", "Faces"]
