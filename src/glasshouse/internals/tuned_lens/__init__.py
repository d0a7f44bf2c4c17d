"""Lenses on the residual stream, prediction trajectories, and what a layer's prediction depends on."""

from glasshouse.internals.tuned_lens.evaluation import Evaluation, evaluate, lens_bias
from glasshouse.internals.tuned_lens.lens import Lens, LogitLens, TunedLens
from glasshouse.internals.tuned_lens.trajectory import Trajectory
from glasshouse.internals.tuned_lens.transfer import Transfer, layer_transfer

__all__ = [
    "Evaluation", "Lens", "LogitLens", "Trajectory", "Transfer", "TunedLens", "evaluate", "layer_transfer",
    "lens_bias",
]  # fmt: skip
