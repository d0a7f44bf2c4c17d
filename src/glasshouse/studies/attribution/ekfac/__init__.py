"""EK-FAC influence functions: do they find causes that are known, and predict what retraining does?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, bootstrap, bootstrap_paired, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.ekfac.canary import canary_seed
from glasshouse.studies.attribution.ekfac.images import lds_all, pbrf_seed
from glasshouse.studies.attribution.fashion import CONVERGED, data_file, shared_bank

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = "Grosse, Bae, Anil et al. 2023, arXiv 2308.03296"
RATIO_LIMIT = 1e3
"""Where the ratio of word orders is searched: beyond it, "a thousand times" says enough."""


@dataclass(frozen=True)
class Config:
    """`seeds` canary models of `epochs` each; a bank of `subsets` x `bank_seeds` retrained models."""

    seeds: int = 5
    epochs: float = 4
    rank: int = 8
    sweep: tuple[float, ...] = (2, 6, 12)
    subsets: int = 60
    bank_seeds: int = 2
    pbrf_seeds: int = 3
    pbrf_points: int = 20
    pbrf_iterations: int = 220


CLAIMS = (
    ClaimSpec(
        "ekfac/2",
        "EK-FAC predicts retraining on subsets better than the gradient dot product (LDS difference)",
        Threshold(">", 0.10),
        null=0.0,
        control="EK-FAC on a model whose weights were shuffled, minus the gradient dot product",
        paper="EK-FAC LDS 0.44 on GPT-2 / WikiText in the reference implementation's README; no figure here",
    ),
    ClaimSpec(
        "ekfac/3a",
        "EK-FAC puts the rows that alone taught a canary first (recall of 20 planted rows in the first 20)",
        Threshold(">=", 0.7),
        null=20 / 3400,
        control="a random ranking",
    ),
    ClaimSpec(
        "ekfac/3b",
        "EK-FAC finds more of the planted rows than word overlap does (recall difference to BM25)",
        Threshold(">", 0.0),
        null=0.0,
        control="a random ranking, minus BM25",
    ),
    ClaimSpec(
        "ekfac/3c",
        "Words alone do not betray the planted rows (BM25 recall)",
        Threshold("<=", 0.35),
        control="BM25 in a world where adverbs stand in decoys and not in planted rows",
    ),
    ClaimSpec(
        "ekfac/3d",
        "EK-FAC finds more of the planted rows than the gradient dot product (recall difference)",
        Threshold(">", 0.0),
        null=0.0,
        control="a random ranking, minus the gradient dot product",
    ),
    ClaimSpec(
        "ekfac/4",
        "Rows that state a fact in the query's order argue at least five times as much as reversed ones",
        Threshold(">=", 5.0),
        null=2.0,
        control="rows about other pairs, against the reversed rows",
        paper="influence is near zero when the key phrases are flipped",
    ),
    ClaimSpec(
        "ekfac/5a",
        "Query gradients of rank 8 give the scores of full ones (Pearson over rows)",
        Threshold(">=", 0.99),
        control="the full scores of unrelated queries",
        paper="rank 32 suffices at scale",
    ),
    ClaimSpec(
        "ekfac/6",
        "EK-FAC follows the proximal Bregman response better than the gradient dot product (Spearman)",
        Threshold(">", 0.0),
        null=0.0,
        control="EK-FAC's scores with the rows permuted, minus the gradient dot product",
        paper="EK-FAC is as accurate as LiSSA, in orders of magnitude less time",
    ),
)


@study(
    "ekfac",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(seeds=20, subsets=100, bank_seeds=5, pbrf_seeds=10)},
)
def ekfac(config: Config, lab: Lab) -> Iterator[Yield]:
    """EK-FAC finds planted causes and predicts retraining."""
    runs = [lab.step(f"canary-{seed}", _canary(seed, config.epochs, config.rank)) for seed in lab.seeds]
    yield from _canary_claims(lab, runs)
    yield from _order_claim(lab, runs)
    values = [x for run in runs for x in run["rank_pearson"]]
    others = [x for run in runs for x in run["rank_pearson_other"]]
    seeds = [run["seed"] for run in runs for _ in run["rank_pearson"]]
    yield lab.claim("ekfac/5a", bootstrap(values, clusters=seeds), bootstrap(others, clusters=seeds))
    sweep = [lab.step(f"canary-0-epochs-{e:g}", _canary(0, e, config.rank)) for e in config.sweep]
    yield _sweep_table([*sweep, runs[0]])
    if data_file() is None:
        lab.progress.say("ekfac/2 and ekfac/6 need the images that GLASSHOUSE_DATA points at: not run")
        return
    yield from _lds_claim(config, lab)
    yield _pbrf_claim(config, lab)


def _canary(seed: int, epochs: float, rank: int) -> Callable[[], Any]:
    return lambda: canary_seed(seed, epochs, rank)


def _canary_claims(lab: Lab, runs: list[dict[str, Any]]) -> Iterator[Yield]:
    own, words, dot, unbalanced = (
        [run[name] for run in runs] for name in ("ekfac", "bm25", "identity", "bm25_unbalanced")
    )
    chance = [run["random"] for run in runs]
    p = np.mean([run["p_canary"] for run in runs])
    note = f"{len(runs)} seeds, {runs[0]['epochs']:g} epochs, mean p(canary) {p:.2f}"
    yield lab.claim("ekfac/3a", t_interval(own), Estimate.exact(chance[0], len(runs)), note)
    yield lab.claim("ekfac/3b", _paired(own, words), _paired(chance, words), note)
    yield lab.claim("ekfac/3c", t_interval(words), t_interval(unbalanced), note)
    yield lab.claim("ekfac/3d", _paired(own, dot), _paired(chance, dot), note)
    columns = (
        "seed", "epochs", "p_canary", "ekfac", "identity",
        "ekfac_each", "identity_each", "bm25", "bm25_unbalanced",
    )  # fmt: skip
    yield Table("recall", [{name: run[name] for name in columns} for run in runs])
    yield Figure("recall", _recall_figure(runs))


def _paired(a: list[float], b: list[float]) -> Estimate:
    return t_interval([x - y for x, y in zip(a, b, strict=True)])


def _order_claim(lab: Lab, runs: list[dict[str, Any]]) -> Iterator[Yield]:
    """Mixed pairs of all seeds; one-way pairs beside them in the table."""
    kinds: dict[str, list[tuple[float, float, float]]] = {"mixed": [], "one-way": []}
    for run in runs:
        order = run["order"]
        rows = list(zip(order["kind"], order["same"], order["reversed"], order["other"], strict=True))
        kinds["mixed"] += [(s, r, o) for kind, s, r, o in rows if kind == "mixed"]
        forward = [(s, o) for kind, s, _, o in rows if kind == "forward"]
        backward = [r for kind, _, r, _ in rows if kind == "reversed"]
        kinds["one-way"] += [(s, r, o) for (s, o), r in zip(forward, backward, strict=True)]
    table = []
    for name, triples in kinds.items():
        same, reversed_, other = (np.array(column) for column in zip(*triples, strict=True))
        ratio, stranger = ratio_of_means(same, reversed_), ratio_of_means(other, reversed_)
        table.append({"pairs": name, "same": same.mean(), "reversed": reversed_.mean(),
                      "other pairs": other.mean(), "ratio": ratio.value, "low": ratio.low,
                      "high": ratio.high})  # fmt: skip
        if name == "mixed":
            yield lab.claim("ekfac/4", ratio, stranger, "pairs told both ways; in SDs of a query's scores")
    yield Table("word-order", table)


def ratio_of_means(a: np.ndarray, b: np.ndarray, *, level: float = 0.95, seed: int = 0) -> Estimate:
    """mean(a) / mean(b) over pairs; the interval holds the r for which mean(a - r b) may be zero.

    Nothing is divided inside the bootstrap, so a small mean of b makes the interval long, not wrong (the idea
    of Fieller, with resampled pairs). Bounds beyond +-1000 are cut there.
    """
    from glasshouse.runtime.seeds import rng

    draws = rng(seed, "ratio").integers(len(a), size=(4000, len(a)))
    top, bottom = a[draws].mean(1), b[draws].mean(1)
    tail = (1 - level) / 2

    def bound(q: float) -> float:
        """Where the q-quantile of mean(a) - r mean(b) changes sign; falls in r while mean(b) > 0."""
        low, high = -RATIO_LIMIT, RATIO_LIMIT
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if np.quantile(top - middle * bottom, q) > 0 else (low, middle)
        return low

    if b.mean() <= 0:
        return Estimate.undefined("the reversed rows argue against the answer on average", len(a))
    low, high = bound(tail), bound(1 - tail)
    value = float(a.mean() / b.mean())
    return Estimate(
        value, min(low, value), max(high, value), level, len(a), "bootstrap of a - r b over pairs"
    )


def _sweep_table(runs: list[dict[str, Any]]) -> Table:
    """Recall against convergence: what one epoch more does to every method."""
    columns = ("epochs", "p_canary", "ekfac", "identity", "ekfac_each", "identity_each", "bm25")
    rows = sorted(runs, key=lambda run: run["epochs"])
    return Table("convergence", [{name: run[name] for name in columns} for run in rows])


def _lds_claim(config: Config, lab: Lab) -> Iterator[Yield]:
    from glasshouse.attribution.evaluate import split_half_ceiling

    def measure() -> dict[str, Any]:
        bank = shared_bank(lab, CONVERGED, subsets=config.subsets, seeds=config.bank_seeds)
        return {"lds": lds_all(bank), "ceiling": split_half_ceiling(bank).to_json()}

    found = lab.step("lds", measure)
    own, dot = found["lds"]["ekfac"], found["lds"]["identity"]
    control = bootstrap_paired(found["lds"]["ekfac, shuffled weights"], dot)
    yield lab.claim("ekfac/2", bootstrap_paired(own, dot), control, f"{config.subsets} halves, 60 queries")
    rows = [{"scores": name, **bootstrap(v).to_json()} for name, v in found["lds"].items()]
    yield Table("lds", [*rows, {"scores": "ceiling (split halves)", **found["ceiling"]}])


def _pbrf_claim(config: Config, lab: Lab) -> Yield:
    runs = [
        lab.step(
            f"pbrf-{seed}", lambda seed=seed: pbrf_seed(seed, config.pbrf_points, config.pbrf_iterations)
        )
        for seed in range(config.pbrf_seeds)
    ]
    joined = {name: np.concatenate([run[name] for run in runs]) for name in ("ekfac", "identity", "permuted")}
    # Queries of one model share its training rows: seeds are drawn, then nothing finer.
    estimate = bootstrap_paired(joined["ekfac"], joined["identity"])
    control = bootstrap_paired(joined["permuted"], joined["identity"])
    residuals = ", ".join(f"{run['residual_median']:.2f} (max {run['residual_max']:.2f})" for run in runs)
    note = f"interval over {len(joined['ekfac'])} queries of {len(runs)} models; CG residuals {residuals}"
    return lab.claim("ekfac/6", estimate, control, note)


def _recall_figure(runs: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    bars = [
        go.Box(y=[run[key] for run in runs], name=name, boxpoints="all", jitter=0.3)
        for key, name in (("ekfac", "EK-FAC"), ("identity", "gradient dot"), ("bm25", "BM25"))
    ]
    return go.Figure(bars).update_layout(yaxis_title="recall of 20 planted rows in the first 20")
