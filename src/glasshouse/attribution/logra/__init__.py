"""LoGra: projected gradients logged to disk (Choe et al. 2024, arXiv:2405.13954)."""

from glasshouse.attribution.logra.finished import FinishedLog, load_log
from glasshouse.attribution.logra.log import SketchLog
from glasshouse.attribution.logra.method import LoGra
from glasshouse.attribution.logra.projection import Projection, RankWarning
from glasshouse.attribution.logra.recording import GradientLog
from glasshouse.attribution.logra.trainer import patch_trainer

__all__ = [
    "FinishedLog",
    "GradientLog",
    "LoGra",
    "Projection",
    "RankWarning",
    "SketchLog",
    "load_log",
    "patch_trainer",
]
