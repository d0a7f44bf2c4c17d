"""Lenses on the residual stream, prediction trajectories, and what a layer's prediction depends on."""

from glasshouse.internals.tuned_lens.lens import Lens, LogitLens, TunedLens
from glasshouse.internals.tuned_lens.trajectory import Trajectory

__all__ = ["Lens", "LogitLens", "Trajectory", "TunedLens"]
