"""Lenses on the residual stream, prediction trajectories, and what a layer's prediction depends on."""

from glasshouse.internals.tuned_lens.ablation import layer_ablation, subspace_ablation
from glasshouse.internals.tuned_lens.causal import CausalBasis, causal_basis
from glasshouse.internals.tuned_lens.evaluation import Evaluation, evaluate, lens_bias
from glasshouse.internals.tuned_lens.fidelity import Alignment, Fidelity, fidelity, response_alignment
from glasshouse.internals.tuned_lens.head import Head
from glasshouse.internals.tuned_lens.inversion import Inversion, invert
from glasshouse.internals.tuned_lens.lens import Lens, LogitLens, TunedLens
from glasshouse.internals.tuned_lens.streams import chunked
from glasshouse.internals.tuned_lens.trajectory import Trajectory
from glasshouse.internals.tuned_lens.transfer import Transfer, layer_transfer

__all__ = [
    "Alignment",
    "CausalBasis",
    "Evaluation",
    "Fidelity",
    "Head",
    "Inversion",
    "Lens",
    "LogitLens",
    "Trajectory",
    "Transfer",
    "TunedLens",
    "causal_basis",
    "chunked",
    "evaluate",
    "fidelity",
    "invert",
    "layer_ablation",
    "layer_transfer",
    "lens_bias",
    "response_alignment",
    "subspace_ablation",
]
