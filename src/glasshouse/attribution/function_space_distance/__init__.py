"""Function-space distance without the data (LAFTR; Dhawan, Huang, Bae, Grosse 2023, arXiv:2302.03519).

How far have a model's outputs on old data moved, when the old data may no longer be kept? `FSDSketch` answers
from input moments and one number per unit.
"""

from glasshouse.attribution.function_space_distance.moments import InputMoments, SketchWarning
from glasshouse.attribution.function_space_distance.results import Breakdown
from glasshouse.attribution.function_space_distance.sketch import FSDSketch

__all__ = ["Breakdown", "FSDSketch", "InputMoments", "SketchWarning"]
