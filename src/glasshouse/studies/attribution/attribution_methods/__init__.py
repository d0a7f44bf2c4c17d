"""Every attribution method on the same organisms: what it predicts, costs, and which controls it passes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, bootstrap, bootstrap_paired, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.attribution_methods import images, words
from glasshouse.studies.attribution.fashion import CONVERGED, NOISY, Recipe, data_file, shared_bank

if TYPE_CHECKING:
    from glasshouse.attribution.evaluate import Brittleness, MislabelCurves
    from glasshouse.studies._lab import Lab

PAPER = (
    "Park et al. 2023 (TRAK), arXiv 2303.14186; Pruthi et al. 2020 (TracIn), arXiv 2002.08484; "
    "Ilyas et al. 2022 (brittleness), arXiv 2202.00622"
)
SOURCE = "SOURCE, 6 checkpoints"
ALIKE = "representation, by label"


@dataclass(frozen=True)
class Config:
    """LDS of `models` models on banks of `subsets` x `bank_seeds`; removals for `asked` queries.

    `ks` rows are removed (the second is the one that claims are made of), `flips` is the grid of
    brittleness, each removal retrained with `retrained` seeds; `seeds` canary models of `epochs`.
    """

    seeds: int = 3
    models: int = 2
    subsets: int = 60
    bank_seeds: int = 2
    asked: int = 30
    ks: tuple[int, ...] = (16, 40, 80)
    flips: tuple[int, ...] = (16, 40, 80, 160)
    retrained: int = 3
    epochs: float = 4


CLAIMS = (
    ClaimSpec(
        "attribution-methods/1r",
        "LDS and cost of every method on a model trained to convergence (the estimate: the best method)",
        Threshold("report"),
    ),
    ClaimSpec(
        "attribution-methods/2r",
        "LDS and cost of every method on noisy labels and three epochs (the estimate: the best method)",
        Threshold("report"),
    ),
    ClaimSpec(
        "attribution-methods/3",
        "Removing the 5% of rows that EK-FAC ranks highest lowers the margin by half a unit more than "
        "removing as many at random",
        Threshold("<=", -0.5, why="half a unit of log-odds stands out of the noise of three retrained seeds"),
        null=0.0,
        control="the rows that EK-FAC ranks highest for a query of another class, against random ones",
    ),
    ClaimSpec(
        "attribution-methods/4r",
        "Removing the 5% of rows that SOURCE ranks highest, against removing the most similar rows of the "
        "same label (negative: SOURCE finds more)",
        Threshold("report"),
    ),
    ClaimSpec(
        "attribution-methods/5",
        "Removing the 5% of rows that EK-FAC ranks highest flips more right predictions than removing as "
        "many of the query's class at random (difference of shares)",
        Threshold(">", 0.1, why="a tenth of the queries: more than one query of those asked"),
        null=0.0,
        control="the rows that EK-FAC ranks highest for a query of another class, minus random of the class",
    ),
    ClaimSpec(
        "attribution-methods/6r",
        "AUROC of wrong labels by EK-FAC's self-influence, beside loss, EL2N and others",
        Threshold("report"),
    ),
    ClaimSpec(
        "attribution-methods/7",
        "EK-FAC's scores are all but unrelated to those of the same model with its weights shuffled "
        "(mean Spearman per query, converged)",
        Threshold("between", -0.1, 0.1, why="equivalence: a hundredth of the variance of ranks"),
        control="the scores of another trained model of the same recipe",
    ),
    ClaimSpec(
        "attribution-methods/8",
        "EK-FAC finds more of the rows that alone taught a canary than similarity of representations does "
        "(recall of 20 planted rows in the first 20, difference)",
        Threshold(">", 0.0),
        null=0.0,
        control="a random ranking, minus representations",
    ),
    ClaimSpec(
        "attribution-methods/9r",
        "Share of their top 20 rows that two queries have in common, converged (EK-FAC; a method that "
        "ignores the query gives 1)",
        Threshold("report"),
    ),
    ClaimSpec(
        "attribution-methods/10",
        "EK-FAC notices the order of words: of its top rows' scores less than half is left when their "
        "tokens are shuffled",
        Threshold("<", 0.5, why="a bag of words keeps all of it"),
        control="BM25",
    ),
    ClaimSpec(
        "attribution-methods/11r",
        "LDS that a damping chosen on twenty subsets adds to EK-FAC on noisy labels, over a tenth of the "
        "mean eigenvalue",
        Threshold("report"),
    ),
)


@study(
    "attribution-methods",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={
        "laptop": Config(),
        "paper": Config(seeds=10, models=5, subsets=100, bank_seeds=5, asked=60, retrained=5),
    },
)
def attribution_methods(config: Config, lab: Lab) -> Iterator[Yield]:
    """All methods, one table; removals, controls, costs."""
    runs = [
        lab.step(f"canary-{seed}", lambda seed=seed: words.canary_seed(seed, config.epochs))
        for seed in lab.seeds
    ]
    yield from _canary(lab, runs)
    if data_file() is None:
        lab.progress.say("the rows on images need the data that GLASSHOUSE_DATA points at: not run")
        return
    yield from _lds(config, lab, CONVERGED, "attribution-methods/1r")
    yield from _lds(config, lab, NOISY, "attribution-methods/2r")
    yield from _removals(config, lab)
    yield from _mislabelled(config, lab)
    yield from _randomised(config, lab)
    yield from _damping(config, lab)


def _canary(lab: Lab, runs: list[dict[str, Any]]) -> Iterator[Yield]:
    own, alike = ([run["recall"][name] for run in runs] for name in ("EK-FAC", "representation"))
    chance = [run["random"] for run in runs]
    note = f"{len(runs)} seeds; table 'recall' has every method"
    yield lab.claim("attribution-methods/8", _paired(own, alike), _paired(chance, alike), note)
    left = [run["order"]["EK-FAC"] for run in runs]
    bag = [run["order"]["BM25"] for run in runs]
    yield lab.claim("attribution-methods/10", t_interval(left), t_interval(bag), f"{len(runs)} seeds")
    yield Table("recall", [{"seed": run["seed"], "random": run["random"], **run["recall"]} for run in runs])
    yield Table("token-order", [{"seed": run["seed"], **run["order"]} for run in runs])


def _paired(a: list[float], b: list[float]) -> Estimate:
    return t_interval([x - y for x, y in zip(a, b, strict=True)])


def _lds(config: Config, lab: Lab, recipe: Recipe, claim: str) -> Iterator[Yield]:
    from glasshouse.attribution.evaluate import split_half_ceiling

    def measure() -> dict[str, Any]:
        bank = shared_bank(lab, recipe, subsets=config.subsets, seeds=config.bank_seeds)
        rows = images.lds_rows(recipe, bank, config.models)
        return {"rows": rows, "ceiling": split_half_ceiling(bank).to_json()}

    found = lab.step(f"lds-{recipe.name}", measure)
    means = {name: np.mean([v for v in row["lds"] if v is not None]) for name, row in found["rows"].items()}
    table, best = [], max(means, key=lambda name: float(means[name]))
    for name, row in found["rows"].items():
        lds = bootstrap([v for v in row["lds"] if v is not None])
        table.append({"method": name, "lds": lds.value, "low": lds.low, "high": lds.high, **row["cost"],
                      "top-20 overlap": row["overlap"]})  # fmt: skip
        if name == best:
            yield lab.claim(claim, lds, note=f"{best}; ceiling {Estimate.from_json(found['ceiling'])}")
        if name == "EK-FAC" and recipe is CONVERGED:
            yield lab.claim("attribution-methods/9r", Estimate.exact(row["overlap"], len(row["lds"])))
    half = [found["ceiling"][key] for key in ("value", "low", "high")]
    marks = {
        "ceiling (split halves)": half,
        "a perfect predictor (Spearman-Brown)": [_stepped_up(r) for r in half],
    }
    blank = dict.fromkeys(table[0])
    table_of_marks = [
        blank | {"method": name, "lds": value, "low": low, "high": high}
        for name, (value, low, high) in marks.items()
    ]
    yield Table(f"lds-{recipe.name}", [*table, *table_of_marks])
    yield Figure(f"lds-{recipe.name}", _lds_figure(table))


def _stepped_up(r: float) -> float:
    """Correlation of the bank's mean with what it would be without noise, from that of its two halves.

    Halves that correlate r make a mean of reliability 2r / (1 + r); a noise-free predictor reaches its root.
    """
    return float(np.sqrt(2 * r / (1 + r))) if r > 0 else 0.0


def _removals(config: Config, lab: Lab) -> Iterator[Yield]:
    from glasshouse.attribution.evaluate import Brittleness, LeaveSomeOut

    folder = Path(lab.run.folder("removals"))

    def measure() -> bool:
        some, brittle = images.removals(
            NOISY, config.asked, tuple(config.ks), tuple(config.flips), config.retrained, folder / "models"
        )
        some.save(folder / "some"), brittle.save(folder / "brittle")
        return True

    lab.step("removals", measure)
    some, brittle = LeaveSomeOut.load(folder / "some"), Brittleness.load(folder / "brittle")
    k = config.ks[1]
    note = f"{len(some.query_ids)} queries, {k} of {NOISY.rows} rows, {some.seeds} seeds each"
    yield lab.claim("attribution-methods/3", some.against("EK-FAC", k), some.against(images.OTHER, k), note)
    yield lab.claim("attribution-methods/4r", some.against(SOURCE, k, ALIKE), note=note)
    yield from _flips(lab, brittle, k)
    yield Table("leave-some-out", [
        {"rows removed by": name, "k": size, **some.change(name, size).to_json()}
        for name in some.names for size in some.ks
    ])  # fmt: skip
    yield Figure("leave-some-out", some.plot())


def _flips(lab: Lab, brittle: Brittleness, k: int) -> Iterator[Yield]:
    from glasshouse.attribution.evaluate.brittleness import SAME_CLASS

    own = brittle.against("EK-FAC", SAME_CLASS, k)
    control = brittle.against(images.OTHER, SAME_CLASS, k)
    note = f"{len(brittle.query_ids)} queries answered right, {k} rows"
    yield lab.claim("attribution-methods/5", own, control, note)
    yield Table("brittleness", [
        {"rows removed by": name, "k": size, **brittle.fraction(name, size).to_json()}
        for name in brittle.names for size in brittle.ks
    ])  # fmt: skip
    yield Figure("brittleness", brittle.plot())


def _mislabelled(config: Config, lab: Lab) -> Iterator[Yield]:
    from glasshouse.attribution.evaluate import mislabel

    found = lab.step("mislabelled", lambda: images.mislabelled(config.models))
    curves: MislabelCurves = mislabel(found["scores"], found["wrong"])
    yield lab.claim("attribution-methods/6r", curves.auroc("self-influence, EK-FAC"))
    yield Table("mislabelled", curves.to_frame().to_dict("records"))
    yield Figure("mislabelled", curves.plot())


def _randomised(config: Config, lab: Lab) -> Iterator[Yield]:
    rows = []
    for recipe in (CONVERGED, NOISY):
        found = lab.step(
            f"randomised-{recipe.name}", lambda recipe=recipe: images.randomisation(recipe, config.models)
        )
        # Queries of one model share its weights, but not their gradients: queries are what is drawn.
        broken, trained = (bootstrap(found[key]) for key in ("shuffled", "another"))
        if recipe is CONVERGED:
            yield lab.claim("attribution-methods/7", broken, trained, f"{config.models} models, 60 queries")
        rows.append({"recipe": recipe.name, "scores of": "shuffled weights", **broken.to_json()})
        rows.append({"recipe": recipe.name, "scores of": "another trained model", **trained.to_json()})
    yield Table("randomised", rows)


def _damping(config: Config, lab: Lab) -> Iterator[Yield]:
    rows: list[dict[str, Any]] = []
    for recipe in (CONVERGED, NOISY):

        def measure(recipe: Recipe = recipe) -> list[dict[str, Any]]:
            bank = shared_bank(lab, recipe, subsets=config.subsets, seeds=config.bank_seeds)
            return images.damping_choice(recipe, bank)

        rows += lab.step(f"damping-{recipe.name}", measure)
    noisy = next(row for row in rows if row["recipe"] == NOISY.name and row["method"] == "EK-FAC")
    gain = bootstrap_paired(noisy["chosen by query"], noisy["auto by query"])
    yield lab.claim("attribution-methods/11r", gain, note=f"damping {noisy['damping']}")
    kept = ("recipe", "method", "damping", "lds", "low", "high", "lds of auto")
    yield Table("damping", [{key: row[key] for key in kept} for row in rows])
    yield Table("damping-sweep", [
        {"recipe": row["recipe"], "method": row["method"], "damping": at, "lds on half the queries": value}
        for row in rows for at, value in row["sweep"].items()
    ])  # fmt: skip


def _lds_figure(table: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    seconds = [max(row["fit_seconds"] + row["score_seconds"], 1e-3) for row in table]
    bars = {"type": "data", "symmetric": False, "array": [row["high"] - row["lds"] for row in table],
            "arrayminus": [row["lds"] - row["low"] for row in table]}  # fmt: skip
    figure = go.Figure(
        go.Scatter(x=seconds, y=[row["lds"] for row in table], text=[row["method"] for row in table],
                   mode="markers+text", textposition="top center", error_y=bars)
    )  # fmt: skip
    return figure.update_layout(xaxis_title="CPU seconds, fit and score", xaxis_type="log", yaxis_title="LDS")
