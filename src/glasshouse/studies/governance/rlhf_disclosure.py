"""Study: what can be checked of what an RLHF pipeline discloses? On simulated raters and a DPO pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab


@dataclass(frozen=True)
class Config:
    """`seeds` crowds of `items` pairs; `flip_items` pairs for each flip rate; `steps` of DPO."""

    seeds: int = 20
    items: int = 2000
    flip_items: int = 4000
    flips: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    longer: float = 0.6
    prompts: int = 120
    steps: int = 30
    samples: int = 16


CLAIMS = [
    ClaimSpec(
        "rlhf-disclosure/1a",
        "The rater who answers at random and the one who inverts are flagged in every crowd.",
        Threshold(">=", 1.0, why="'flagged' is read as always; the interval must exclude nine in ten"),
        null=0.9,
        control="honest raters flagged, in the same crowds",
    ),
    ClaimSpec(
        "rlhf-disclosure/1b",
        "At most one honest rater is flagged in 20 crowds.",
        Threshold("<=", 1.0),
        control="the same test at 0.05 for each rater, without correction for their number",
    ),
    ClaimSpec(
        "rlhf-disclosure/1c",
        "The planted length bias lies inside the 95 % interval in at least 18 of 20 crowds.",
        Threshold(">=", 18.0),
        control="no bias (one half) inside the same intervals",
    ),
    ClaimSpec(
        "rlhf-disclosure/2",
        "The noise ceiling estimated from agreement is 1 - f within 0.02 for raters who flip with rate f, at "
        "the flip rate where it is worst.",
        Threshold("between", -0.02, 0.02),
        control="the raters' agreement itself taken for the ceiling, at the flip rate where it is worst",
    ),
    ClaimSpec(
        "rlhf-disclosure/5",
        "Of a small pipeline trained here, at least 60 % of the card's applicable fields are filled from its "
        "artefacts, none guessed.",
        Threshold(">=", 0.6),
        control="the card of the same policy from its folder alone, without data or measurements",
    ),
]  # fmt: skip


@study(
    "rlhf-disclosure",
    wing="governance",
    paper="Casper et al. 2023, Open Problems and Fundamental Limitations of RLHF, arXiv 2307.15217",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": Config(seeds=20, prompts=1000, steps=300)},
)
def rlhf_disclosure(config: Config, lab: Lab) -> Iterator[Yield]:
    """RLHF disclosure: raters with planted faults, the noise ceiling, and a card filled from a pipeline."""
    crowds = [
        lab.step(f"crowd {seed}", lambda seed=seed: crowd(seed, config.items, config.longer))
        for seed in lab.seeds
    ]
    yield from _crowd_claims(lab, crowds, config.longer)
    flips = [
        lab.step(f"flips {seed}", lambda seed=seed: flipped_ceilings(seed, config.flip_items, config.flips))
        for seed in lab.seeds
    ]
    yield _ceiling_claim(lab, [row for rows in flips for row in rows])
    yield Table("ceilings", [row for rows in flips for row in rows])
    filled = lab.step("pipeline", lambda: pipeline(lab, config))
    yield lab.claim(
        "rlhf-disclosure/5",
        Estimate.exact(filled["disclosed"] / filled["applicable"], filled["applicable"]),
        Estimate.exact(filled["bare"] / filled["bare_applicable"], filled["bare_applicable"]),
        note=f"{filled['disclosed']} of {filled['applicable']} fields; errors at level 3: "
        f"{filled['errors'] or 'none'}; unknown: {', '.join(filled['unknown'])}",
    )
    yield Table("fields", filled["fields"])
    yield Figure("curve", _curve(filled["curve"]))


def crowd(seed: int, items: int, longer: float) -> dict[str, Any]:
    """One crowd: who is flagged with and without correction, and the interval of the length bias."""
    from glasshouse.governance.rlhf_disclosure.preferences import flag_raters, measure_preferences
    from glasshouse.studies.governance._raters import INVERTED, SPAMMER, Crowd, simulate

    ratings = simulate(Crowd(items=items, longer=longer), seed)
    found = measure_preferences(ratings, seed=seed)
    flagged = {flag.rater for flag in found.flags}
    raters = {one.rater for one in ratings}
    # Without Holm: a level so lenient that each rater alone would be flagged at 0.05.
    lenient = {flag.rater for flag in flag_raters(ratings, level=0.05, corrected=False)}
    bad = {SPAMMER, INVERTED}
    return {
        "seed": seed, "bad_flagged": len(flagged & bad), "honest_flagged": len(flagged - bad),
        "honest": len(raters - bad), "lenient": len(lenient - bad),
        "bias": found.longer_preferred.to_json(), "alpha": found.alpha.to_json(),
    }  # fmt: skip


def flipped_ceilings(seed: int, items: int, flips: tuple[float, ...]) -> list[dict[str, float]]:
    """For each flip rate: the estimated ceiling, the agreement, and the truth."""
    from glasshouse.governance.rlhf_disclosure import noise_ceiling
    from glasshouse.governance.rlhf_disclosure.preferences import measure_preferences
    from glasshouse.studies.governance._raters import flipped

    found = []
    for rate in flips:
        agreement = measure_preferences(flipped(items, 3, rate, seed), seed=seed).raw_agreement.value
        ceiling = noise_ceiling(agreement)
        assert ceiling is not None
        found.append(
            {"seed": seed, "flip": rate, "agreement": agreement, "ceiling": ceiling, "truth": 1 - rate}
        )
    return found


def pipeline(lab: Lab, config: Config) -> dict[str, Any]:
    """Train a small policy by DPO on simulated raters, fill its card, validate it against its own runs."""
    from glasshouse.studies.governance._pipeline import fill_card

    place = lab.run.folder("release")
    return fill_card(
        place, lab.grow("tiny", seed=0), prompts=config.prompts, steps=config.steps, samples=config.samples,
        cache=lab.cache, device=lab.device,
    )  # fmt: skip


def _crowd_claims(lab: Lab, crowds: list[dict[str, Any]], longer: float) -> Iterator[Yield]:
    from glasshouse.statistics import one_sided_bound

    n = len(crowds)
    bad, honest = sum(c["bad_flagged"] for c in crowds), sum(c["honest_flagged"] for c in crowds)
    everyone = sum(c["honest"] for c in crowds)
    yield lab.claim(
        "rlhf-disclosure/1a", one_sided_bound(bad, 2 * n), one_sided_bound(honest, everyone, side="upper"),
        note=f"{bad} of {2 * n} in {n} crowds",
    )  # fmt: skip
    lenient = sum(c["lenient"] for c in crowds)
    yield lab.claim(
        "rlhf-disclosure/1b", Estimate.exact(honest, n), Estimate.exact(lenient, n),
        note=f"{everyone} honest raters in {n} crowds",
    )  # fmt: skip
    inside = [sum(c["bias"]["low"] <= truth <= c["bias"]["high"] for c in crowds) for truth in (longer, 0.5)]
    yield lab.claim("rlhf-disclosure/1c", Estimate.exact(inside[0], n), Estimate.exact(inside[1], n))
    yield Table("crowds", [{**c, "bias": c["bias"]["value"], "alpha": c["alpha"]["value"]} for c in crowds])


def _ceiling_claim(lab: Lab, rows: list[dict[str, float]]) -> Yield:
    from glasshouse.statistics import t_interval

    def worst(column: str) -> Estimate:
        rates = sorted({row["flip"] for row in rows})
        errors = [t_interval([row[column] - row["truth"] for row in rows if row["flip"] == f]) for f in rates]
        return max(errors, key=lambda e: max(abs(e.low), abs(e.high)))

    single = max(abs(row["ceiling"] - row["truth"]) for row in rows)
    return lab.claim(
        "rlhf-disclosure/2", worst("ceiling"), worst("agreement"),
        note=f"mean error over crowds; the largest of a single crowd is {single:.3f}",
    )  # fmt: skip


def _curve(points: list[dict[str, float]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name in ("proxy", "gold"):
        figure.add_scatter(
            x=[p["kl"] for p in points], y=[p[name] for p in points], name=name, mode="lines+markers"
        )
    title = "Best of n by the implicit reward of the DPO policy"
    return figure.update_layout(title=title, xaxis_title="KL from the base, nats", yaxis_title="mean reward")
