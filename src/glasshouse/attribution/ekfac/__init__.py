"""EK-FAC influence functions (Grosse, Bae, Anil et al. 2023, arXiv:2308.03296).

The influence of training row m on a measurement f is `-grad f^T (G + lambda I)^-1 grad L_m`, with G the
Gauss-Newton Hessian approximated layer by layer by an eigenvalue-corrected Kronecker product (George et al.
2018, arXiv:1806.03884). `EKFAC` also ships the simpler strategies identity, diagonal and kfac.
"""

from glasshouse.attribution.ekfac.exact import GaussNewton, conjugate_gradient, lissa
from glasshouse.attribution.ekfac.method import EKFAC
from glasshouse.attribution.ekfac.pbrf import FineTuned, finetuned_response, pbrf_influence
from glasshouse.attribution.ekfac.search import CanarySearch, canary_search

__all__ = [
    "EKFAC",
    "CanarySearch",
    "FineTuned",
    "GaussNewton",
    "canary_search",
    "conjugate_gradient",
    "finetuned_response",
    "lissa",
    "pbrf_influence",
]
