"""Intervals, tests, rankings and detectors on plain arrays; every number leaves as an `Estimate`.

Names are loaded when first used: importing this package loads neither numpy nor scipy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from glasshouse.runtime.lazy import lazy_names
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    from glasshouse.statistics._bootstrap import bootstrap, bootstrap_paired
    from glasshouse.statistics._hypotheses import (
        binomial_p_value,
        holm,
        minimum_detectable_effect,
        permutation_p_value,
        tost,
    )
    from glasshouse.statistics._intervals import clopper_pearson, one_sided_bound, t_interval, wilson
    from glasshouse.statistics._ranking import auroc, spearman, tpr_at_fpr
    from glasshouse.statistics.detectors import DiagonalGaussian, KNNDistance, Mahalanobis

_HOMES = {
    "_bootstrap": ("bootstrap", "bootstrap_paired"),
    "_hypotheses": ("binomial_p_value", "holm", "minimum_detectable_effect", "permutation_p_value", "tost"),
    "_intervals": ("clopper_pearson", "one_sided_bound", "t_interval", "wilson"),
    "_ranking": ("auroc", "spearman", "tpr_at_fpr"),
    "detectors": ("DiagonalGaussian", "KNNDistance", "Mahalanobis"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "DiagonalGaussian",
    "Estimate",
    "KNNDistance",
    "Mahalanobis",
    "auroc",
    "binomial_p_value",
    "bootstrap",
    "bootstrap_paired",
    "clopper_pearson",
    "holm",
    "minimum_detectable_effect",
    "one_sided_bound",
    "permutation_p_value",
    "spearman",
    "t_interval",
    "tost",
    "tpr_at_fpr",
    "wilson",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME_OF)
