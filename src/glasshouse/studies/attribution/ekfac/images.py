"""EK-FAC on images: LDS beside its rivals, and the proximal Bregman response."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import rng
from glasshouse.studies.attribution.fashion import CONVERGED, queries, train_mlp, train_rows

if TYPE_CHECKING:
    import torch

    from glasshouse.attribution.evaluate import RetrainBank


def lds_all(bank: RetrainBank, seed: int = 0) -> dict[str, Any]:
    """LDS per query of each method on one model, and of EK-FAC on a model whose weights were shuffled."""
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.evaluate import randomised
    from glasshouse.attribution.evaluate.lds import lds_by_query

    (x, y), _ = train_rows(CONVERGED)
    query = queries()
    model = train_mlp(x, y, seed)
    found: dict[str, Any] = {}
    for name, options in {
        "identity": {"strategy": "identity"},
        "diagonal": {"strategy": "diagonal"},
        "kfac": {"strategy": "kfac"},
        "ekfac": {},
        "ekfac, damping 1e-8": {"damping": 1e-8},
    }.items():
        table = EKFAC(seed=seed, **options).fit(model, (x, y)).score(query, "margin")  # type: ignore[arg-type]
        found[name] = lds_by_query(table.scores, bank).tolist()
    shuffled = EKFAC(seed=seed).fit(randomised(model), (x, y)).score(query, "margin")
    found["ekfac, shuffled weights"] = lds_by_query(shuffled.scores, bank).tolist()
    found["representation"] = lds_by_query(_representation(model, x, query[0], y, query[1]), bank).tolist()
    return found


def _representation(
    model: Any, x: torch.Tensor, qx: torch.Tensor, y: torch.Tensor, qy: torch.Tensor
) -> np.ndarray:
    """Cosine of last hidden layers, positive for the same label: the plain similarity baseline."""
    import torch

    with torch.no_grad():
        a, b = (torch.nn.functional.normalize(model[:-1](part), dim=1) for part in (qx, x))
    return ((a @ b.T) * (2.0 * (qy[:, None] == y[None]).float() - 1)).numpy()


def pbrf_seed(seed: int, points: int, iterations: int) -> dict[str, Any]:
    """Spearman over `points` training rows of EK-FAC and of identity with the exact response, per query."""
    from scipy.stats import spearmanr

    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.ekfac import pbrf_influence
    from glasshouse.attribution.objectives import measure
    from glasshouse.attribution.units import as_units

    (x, y), _ = train_rows(CONVERGED)
    query = queries()
    model = train_mlp(x, y, seed)
    rows = sorted(rng(seed, "pbrf points").choice(CONVERGED.rows, points, replace=False).tolist())
    method = EKFAC(seed=seed).fit(model, (x, y))
    truth = pbrf_influence(method, as_units(query), rows, measure("margin"), iterations=iterations)
    tables = {
        "ekfac": method.score(query, "margin").scores[:, rows],
        "identity": EKFAC("identity").fit(model, (x, y)).score(query, "margin").scores[:, rows],
    }
    found: dict[str, Any] = {
        name: [float(spearmanr(a, b)[0]) for a, b in zip(scores, truth.scores, strict=True)]
        for name, scores in tables.items()
    }
    draw = rng(seed, "pbrf control")
    found["permuted"] = [
        float(np.mean([spearmanr(draw.permutation(a), b)[0] for _ in range(50)]))
        for a, b in zip(tables["ekfac"], truth.scores, strict=True)
    ]
    found["residual_median"] = float(np.median(truth.residual))
    found["residual_max"] = float(truth.residual.max())
    return found
