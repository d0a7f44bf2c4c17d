"""Function-space distance without the data (LAFTR; Dhawan, Huang, Bae, Grosse 2023, arXiv:2302.03519).

How far have a model's outputs on old data moved, when the old data may no longer be kept? `FSDSketch` answers
from input moments and one number per unit; the other estimators answer the same call with more, or less.
"""

from glasshouse.attribution.function_space_distance.continual import ContinualTrainer, penalty
from glasshouse.attribution.function_space_distance.influence import FSDInfluence
from glasshouse.attribution.function_space_distance.moments import InputMoments, SketchWarning
from glasshouse.attribution.function_space_distance.moved import Moved, how_far
from glasshouse.attribution.function_space_distance.quadratic import EWCDistance, GGNDistance, L2Distance
from glasshouse.attribution.function_space_distance.results import Breakdown
from glasshouse.attribution.function_space_distance.sketch import FSDSketch
from glasshouse.attribution.function_space_distance.stored import CoresetDistance, NTKDistance

ESTIMATORS = {
    "laftr": FSDSketch,
    "coreset": CoresetDistance,
    "ntk": NTKDistance,
    "ggn-ekfac": GGNDistance,
    "ewc": EWCDistance,
    "l2": L2Distance,
}
"""Every estimator by its short name."""

__all__ = [
    "ESTIMATORS",
    "Breakdown",
    "ContinualTrainer",
    "CoresetDistance",
    "EWCDistance",
    "FSDInfluence",
    "FSDSketch",
    "GGNDistance",
    "InputMoments",
    "L2Distance",
    "Moved",
    "NTKDistance",
    "SketchWarning",
    "how_far",
    "penalty",
]
