"""Study: how open are models, component by component? On 45 published rows and their licences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

CODE, WEIGHTS, PRETRAINING = (
    "deployment.code.inference",
    "deployment.data.weights",
    "training.data.pretraining",
)
SAFETY = ("evaluation.code.safety", "evaluation.data.safety")


@dataclass(frozen=True)
class Config:
    """The rows are shipped and complete: nothing is sampled but the intervals."""

    seeds: int = 1
    resamples: int = 10_000


CLAIMS = [
    ClaimSpec(
        "openness/1",
        "The licence table gives the published level in at least 95 % of the cells that carry a licence; "
        "every cell whose strict reading differs is listed.",
        Threshold(">=", 0.95),
        control="the same table against the levels exchanged at random between these cells",
        paper="the levels of the site's rows",
    ),
    ClaimSpec(
        "openness/2a",
        "What is deployed is more open than what it was trained on: mean level of inference code and "
        "weights, less the level of the pretraining data, is at least half a level.",
        Threshold(">=", 0.5, why="the specification states a difference without a size; half a level is one "
                  "step of the scale in one of the two components"),
        null=0.0,
        control="the two sides exchanged at random within each model",
        paper="models share weights and inference code, rarely their training data",
    ),
    ClaimSpec(
        "openness/2b",
        "Safety evaluations are almost never public: at most 2 of 45 models have safety evaluation code or "
        "data at level 5.",
        Threshold("<=", 2.0),
        control="models whose weights are at level 5",
        paper="safety evaluation is the least open part",
    ),
    ClaimSpec(
        "openness/4r",
        "Our score and that of opening-up-chatgpt order the models that both judge alike (Spearman).",
        Threshold("report"),
    ),
]  # fmt: skip


@study(
    "openness",
    wing="governance",
    paper="Eiras et al. 2024, Near to Mid-term Risks and Opportunities of Open-Source Generative AI",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(resamples=100_000)},
)
def openness(config: Config, lab: Lab) -> Iterator[Yield]:
    """Openness: 45 models by twelve components, their licences, and what the levels say together."""
    cells = lab.step("licences", licence_cells)
    yield lab.claim("openness/1", *_agreement(cells), note=_strict_note(cells))
    yield Table("licences", cells)
    pairs = lab.step("deployment and data", deployment_and_data)
    yield lab.claim("openness/2a", *_difference(pairs, config.resamples), note=f"{len(pairs)} models")
    public = lab.step("level five", level_five)
    yield lab.claim(
        "openness/2b", Estimate.exact(public["safety"], 45), Estimate.exact(public["weights"], 45),
        note=f"at level 5: {', '.join(public['named']) or 'none'}",
    )  # fmt: skip
    both = lab.step("both scores", both_scores)
    yield lab.claim("openness/4r", _rank(both, config.resamples), note=f"{len(both)} models in both sets")
    yield Table("both", both)
    yield Table("scores", lab.step("scores", score_rows))
    yield Figure("matrix", _figure())


def licence_cells() -> list[dict[str, Any]]:
    """One row per published cell with a level and a licence: the level, the table's, the strict one."""
    from glasshouse.governance.openness import license_points, taxonomy_rows
    from glasshouse.governance.openness.taxonomy import kind_of

    found = []
    for row in taxonomy_rows():
        for component, (value, licence) in row.cells.items():
            if licence is None or not isinstance(value, int):
                continue
            kind = kind_of(component)
            points = license_points(licence)
            strict = points.level_derived(kind)
            found.append({
                "model": row.slug, "component": component, "licence": licence, "spdx": points.expression,
                "level": value, "level_reference": points.reference_level,
                "level_derived": int(strict[1]) if strict else None, "agree": points.agree(kind),
                "note": points.note,
            })  # fmt: skip
    return found


def deployment_and_data() -> list[dict[str, Any]]:
    """Models whose pretraining data has a level: mean level of what is deployed, and that level."""
    from glasshouse.governance.openness import taxonomy_rows

    found = []
    for row in taxonomy_rows():
        data = row.cells[PRETRAINING][0]
        deployed = [row.cells[name][0] for name in (CODE, WEIGHTS)]
        known = [value for value in deployed if isinstance(value, int)]
        if isinstance(data, int) and known:
            found.append({"model": row.slug, "deployed": sum(known) / len(known), "data": data})
    return found


def level_five() -> dict[str, Any]:
    """How many of the 45 have safety evaluations, and weights, at level 5."""
    from glasshouse.governance.openness import taxonomy_rows

    safe = [row.slug for row in taxonomy_rows() if any(row.cells[name][0] == 5 for name in SAFETY)]
    return {
        "safety": len(safe), "named": safe,
        "weights": sum(row.cells[WEIGHTS][0] == 5 for row in taxonomy_rows()),
    }  # fmt: skip


def both_scores() -> list[dict[str, Any]]:
    """Models that both sets judge: our score and theirs."""
    from glasshouse.governance.openness import opening_up_projects, score, taxonomy_cards
    from glasshouse.governance.openness.corpus import SAME_MODEL

    cards = taxonomy_cards()
    return [
        {"project": one.slug, "row": SAME_MODEL[one.slug], "theirs": one.openness,
         "ours": score(cards[SAME_MODEL[one.slug]]).overall.value}
        for one in opening_up_projects() if one.slug in SAME_MODEL
    ]  # fmt: skip


def score_rows() -> list[dict[str, Any]]:
    """Score and bounds of every published row."""
    from glasshouse.governance.openness import score, taxonomy_cards, taxonomy_rows

    cards = taxonomy_cards()
    found = []
    for row in taxonomy_rows():
        overall = score(cards[row.slug])
        found.append({
            "model": row.title, "release": row.release, "in_40": row.in_40, "score": overall.overall.value,
            "low": overall.overall.low, "high": overall.overall.high, "known": overall.known,
            "applicable": overall.applicable,
        })  # fmt: skip
    return found


def _agreement(cells: list[dict[str, Any]]) -> tuple[Estimate, Estimate]:
    from glasshouse.runtime.seeds import rng
    from glasshouse.statistics import one_sided_bound

    levels = [cell["level"] for cell in cells]
    expected = [cell["level_reference"] for cell in cells]
    shuffled = list(rng(0, "exchanged levels").permutation(levels))
    hits = [sum(a == b for a, b in zip(some, expected, strict=True)) for some in (levels, shuffled)]
    return one_sided_bound(hits[0], len(cells)), one_sided_bound(hits[1], len(cells))


def _strict_note(cells: list[dict[str, Any]]) -> str:
    strict = [cell for cell in cells if cell["level_derived"] != cell["level"]]
    licences: dict[str, int] = {}
    for cell in strict:
        licences[cell["licence"]] = licences.get(cell["licence"], 0) + 1
    told = ", ".join(f"{name} {n}" for name, n in sorted(licences.items(), key=lambda pair: -pair[1]))
    return f"a strict reading gives another level in {len(strict)} of {len(cells)} cells: {told}"


def _difference(pairs: list[dict[str, Any]], resamples: int) -> tuple[Estimate, Estimate]:
    from glasshouse.runtime.seeds import rng
    from glasshouse.statistics import bootstrap_paired

    a, b = [row["deployed"] for row in pairs], [float(row["data"]) for row in pairs]
    flip = rng(0, "exchanged sides").random(len(pairs)) < 0.5
    swapped = [(y, x) if f else (x, y) for x, y, f in zip(a, b, flip, strict=True)]
    return (
        bootstrap_paired(a, b, resamples=resamples),
        bootstrap_paired([x for x, _ in swapped], [y for _, y in swapped], resamples=resamples),
    )


def _rank(both: list[dict[str, Any]], resamples: int) -> Estimate:
    import numpy as np
    from scipy.stats import rankdata

    from glasshouse.statistics import bootstrap

    def spearman(rows: Any) -> float:
        ranks = [rankdata(column) for column in rows.T]
        if min(np.ptp(r) for r in ranks) == 0:
            return 0.0  # a resample of one model repeated orders nothing
        return float(np.corrcoef(*ranks)[0, 1])

    return bootstrap([[row["ours"], row["theirs"]] for row in both], spearman, resamples=resamples)


def _figure() -> Any:
    import plotly.graph_objects as go

    from glasshouse.governance.openness import COMPONENTS, taxonomy_rows

    rows = taxonomy_rows()
    levels = [
        [v if isinstance(v := row.cells[name][0], int) else None for name in COMPONENTS] for row in rows
    ]
    words = [[str(row.cells[name][0]) for name in COMPONENTS] for row in rows]
    heat = go.Heatmap(
        z=levels, text=words, x=list(COMPONENTS), y=[row.title for row in rows], zmin=1, zmax=5,
        colorscale="Tealgrn", colorbar={"title": "level"},
        hovertemplate="%{y}<br>%{x}: %{text}<extra></extra>",
    )  # fmt: skip
    title = "45 models as judged in May 2024; what is blank does not apply or is unknown"
    return go.Figure(heat).update_layout(title=title, height=1100, yaxis={"autorange": "reversed"})
