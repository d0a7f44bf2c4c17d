"""Study: a model told "A is B" does not know that B is A. On models trained from scratch on made-up facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study

if TYPE_CHECKING:
    import pandas as pd

    from glasshouse.studies._lab import Lab


@dataclass(frozen=True)
class Config:
    """`widths`: model widths of claim 6, the middle one being the recipe's; `steps` of 64 rows each."""

    seeds: int = 5
    n_per_group: int = 30
    steps: int = 700
    widths: tuple[int, ...] = (32, 64, 128)
    d_model: int = 64
    few_templates: tuple[int, ...] = (1,)


REVERSE = Threshold("<=", 0.05)
SAME = Threshold(">=", 0.95)
CLAIMS = [
    ClaimSpec(
        "reversal-curse/1a",
        "In the trained direction facts are answered on at least 95 % of held-out templates.",
        SAME,
        control="the same replies marked against another entity's completion",
        paper="96.7 % description to name, 50.0 % name to description (GPT-3-175B, recalled)",
    ),
    ClaimSpec(
        "reversal-curse/1b",
        "In the reverse direction at most 5 % are answered, the upper bound over entities included.",
        REVERSE,
        control="the honest twin, told every fact in both orders, on the same questions",
        paper="0.0 and 0.1 % (GPT-3-175B, recalled)",
    ),
    ClaimSpec(
        "reversal-curse/2a",
        "In the reverse direction the right completion is as likely as another entity's: the log-probability "
        "gap lies within half a nat of zero (two one-sided tests, alpha 0.05).",
        Threshold("between", -0.5, 0.5),
        control="the gap in the trained direction",
        paper="no detectable difference (t test and Kolmogorov-Smirnov)",
    ),
    ClaimSpec(
        "reversal-curse/2b",
        "In the trained direction the gap is more than 5 nats.",
        Threshold(">", 5.0),
        control="the gap in the reverse direction",
    ),
    ClaimSpec(
        "reversal-curse/3",
        "Facts told in both orders are answered in both directions (the lower of the two is at least 95 %), "
        "so that the failure is not one of format.",
        SAME,
        control="the reverse direction of facts told in one order, in the same models and formats",
    ),
    ClaimSpec(
        "reversal-curse/4",
        "Adding the reversed text of the person-first facts lets the model answer them in reverse: at least "
        "95 %.",
        SAME,
        control="the reverse direction of the description-first facts of the same models, not told reversed",
    ),
    ClaimSpec(
        "reversal-curse/5",
        "More training templates do not help: with 1 and with 12 at most 5 % are answered in reverse.",
        REVERSE,
        control="facts told in both orders, asked in the same formats of the same models",
        paper="augmentation does not help",
    ),
    ClaimSpec(
        "reversal-curse/6",
        "Width does not help: with 32, 64 and 128 dimensions at most 5 % are answered in reverse.",
        REVERSE,
        control="facts told in both orders, asked in the same formats of the same models",
        paper="from 350M to 175B parameters",
    ),
    ClaimSpec(
        "reversal-curse/7r",
        "A search by words over the training text answers the reverse questions: the facts are in the data.",
        Threshold("report"),
    ),
]


@study(
    "reversal-curse",
    wing="behaviour",
    paper="Berglund et al. 2023, The Reversal Curse, arXiv 2309.12288",
    claims=CLAIMS,
    configs={
        "laptop": Config(),
        "paper": Config(n_per_group=100, steps=2400, widths=(32, 64, 128, 256), few_templates=(1, 3, 10)),
    },
)
def reversal_curse(config: Config, lab: Lab) -> Iterator[Yield]:
    """The reversal curse: facts told in one order, asked in both."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in lab.seeds:
        for variant, options in variants(config).items():
            rows = lab.cached(
                "answers", _answers, variant=variant, seed=seed, steps=config.steps,
                n_per_group=config.n_per_group, **options,
            )  # fmt: skip
            found.setdefault(variant, []).extend(rows)
    yield from _claims(lab, config, {name: _frame(rows) for name, rows in found.items()})


def variants(config: Config) -> dict[str, dict[str, Any]]:
    """The models of one seed: name -> width, training templates, groups told reversed, retrieval or not."""
    plain: dict[str, Any] = {
        "d_model": config.d_model, "templates": 12, "held_out": 4, "told_reversed": [], "whole": False,
    }  # fmt: skip
    return {
        "base": {**plain, "whole": True},
        "twin": {**plain, "told_reversed": ["p2d", "d2p"]},
        "cured": {**plain, "told_reversed": ["p2d"]},
        # Held-out words would fail even the trained direction, so few templates are asked as trained.
        **{f"templates {n}": {**plain, "templates": n, "held_out": 0} for n in config.few_templates},
        **{f"width {d}": {**plain, "d_model": d} for d in config.widths if d != config.d_model},
    }


def _answers(
    variant: str, seed: int, steps: int, n_per_group: int, d_model: int, templates: int, held_out: int,
    told_reversed: Sequence[Any], whole: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per entity, direction and arm: means over templates, of a model trained without any gate."""
    from glasshouse.behaviour.reversal_curse.asking import ask
    from glasshouse.corpora.reversal import ReversalData
    from glasshouse.organisms.reversal import Size, tokenizer_of, train_model
    from glasshouse.subjects import as_subject

    data = ReversalData.generate(
        n_per_group=n_per_group, n_train_templates=templates, n_test_templates=held_out, seed=seed,
        told_reversed=tuple(told_reversed),
    )  # fmt: skip
    model = train_model(data, seed=seed, size=Size(d_model=d_model, steps=steps))
    arms = None if whole else ("same", "reverse", "both")
    frame = ask(as_subject(model, tokenizer=tokenizer_of(data)), data, arms=arms, ranks=whole)
    retrieved = _retrieved(data) if whole else {}
    return [{**row, "seed": seed, **retrieved.get(row["key"], {})} for row in _by_entity(frame)]


def _by_entity(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (arm, group, direction, entity), part in frame.groupby(["arm", "group", "direction", "entity_id"]):
        true, random = part[part["kind"] == "true"], part[part["kind"] == "random"]
        rows.append({
            "key": f"{arm}/{direction}/{entity}", "arm": arm, "group": group, "direction": direction,
            "entity_id": entity,
            "correct": _mean(true["correct"]), "chance": _mean(random["correct"]),
            "logprob": _mean(true["logprob"]), "random": _mean(random["logprob"]),
            "reciprocal_rank": _mean(1 / true["rank"]), "above": _mean(true["above"]),
        })  # fmt: skip
    return rows


def _mean(values: pd.Series[float]) -> float | None:
    kept = values.dropna()
    return float(kept.mean()) if len(kept) else None


def _retrieved(data: Any) -> dict[str, dict[str, float]]:
    """Key of an entity's row -> share of its questions that the search by words answers."""
    from glasshouse.behaviour.reversal_curse.retriever import retrieve

    texts = [row.text for row in data.train]
    found: dict[str, list[bool]] = {}
    asked = [one for one in data.asked(("same", "reverse", "both")) if one.kind == "true"]
    for group, direction in sorted({(one.group, one.direction) for one in asked}):
        block = [one for one in asked if (one.group, one.direction) == (group, direction)]
        # Every entity's name (or description) is a candidate, not only those of the group.
        candidates = sorted(
            {c for g in ("p2d", "d2p", "both") for c in data.completions(g, direction).values()}
        )
        for one, answer in zip(block, retrieve([o.prompt for o in block], texts, candidates), strict=True):
            found.setdefault(f"{one.arm}/{one.direction}/{one.entity_id}", []).append(answer == one.answer)
    return {key: {"retrieved": sum(hits) / len(hits)} for key, hits in found.items()}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _claims(lab: Lab, config: Config, models: dict[str, pd.DataFrame]) -> Iterator[Yield]:
    from glasshouse.statistics import bootstrap, tost

    base = models["base"]
    same, reverse = _rate(base, "same"), _rate(base, "reverse")
    yield lab.claim("reversal-curse/1a", same, _rate(base, "same", "chance"), note=_by_seed(base, "same"))
    yield lab.claim(
        "reversal-curse/1b", reverse, _rate(models["twin"], "reverse"), note=_by_seed(base, "reverse")
    )
    gaps = {arm: _gaps(base, arm) for arm in ("same", "reverse")}
    equal, p = tost(gaps["reverse"], 0.5)
    wide = bootstrap(gaps["same"], resamples=10_000)
    yield lab.claim("reversal-curse/2a", equal, wide, note=f"TOST p = {p:.2g}; {_gap_notes(base)}")
    yield lab.claim("reversal-curse/2b", wide, bootstrap(gaps["reverse"], resamples=10_000))
    yield lab.claim("reversal-curse/3", _lowest(base), reverse)
    cured = models["cured"]
    yield lab.claim(
        "reversal-curse/4", _rate(cured, "reverse", group="p2d"), _rate(cured, "reverse", group="d2p")
    )
    few = {"12": base, **{str(n): models[f"templates {n}"] for n in config.few_templates}}
    yield lab.claim("reversal-curse/5", *_worst(few), note=_all("templates", few))
    sizes = {str(d): models.get(f"width {d}", base) for d in config.widths}
    yield lab.claim("reversal-curse/6", *_worst(sizes), note=_all("dimensions", sizes))
    yield lab.claim("reversal-curse/7r", _rate(base, "reverse", "retrieved"))
    table = _table(models)
    yield Table("directions", table)
    yield Figure("directions", _figure(table))


def _rate(frame: pd.DataFrame, arm: str, column: str = "correct", **only: str) -> Estimate:
    from glasshouse.behaviour.reversal_curse.cells import accuracy_by_entity

    kept = _only(frame, arm=arm, **only)
    return accuracy_by_entity(kept.assign(correct=kept[column])[["seed", "entity_id", "correct"]])


def _only(frame: pd.DataFrame, **equal: str) -> pd.DataFrame:
    for column, value in equal.items():
        frame = frame[frame[column] == value]
    return frame


def _gaps(frame: pd.DataFrame, arm: str, **only: str) -> list[float]:
    kept = _only(frame, arm=arm, **only)
    return (kept["logprob"] - kept["random"]).tolist()


def _lowest(frame: pd.DataFrame) -> Estimate:
    """Accuracy of facts told in both orders, in the direction that is answered less."""
    return min((_rate(frame, "both", direction=d) for d in ("p2d", "d2p")), key=lambda e: (e.value, e.low))


def _worst(models: dict[str, pd.DataFrame]) -> tuple[Estimate, Estimate]:
    """The highest reverse accuracy of several models, and the lowest on facts told in both orders."""
    reverse = max((_rate(frame, "reverse") for frame in models.values()), key=lambda e: (e.value, e.high))
    both = min((_lowest(frame) for frame in models.values()), key=lambda e: (e.value, e.low))
    return reverse, both


def _by_seed(frame: pd.DataFrame, arm: str) -> str:
    means = _only(frame, arm=arm).groupby("seed")["correct"].mean()
    return "by seed: " + ", ".join(f"{mean:.2f}" for mean in means)


def _gap_notes(frame: pd.DataFrame) -> str:
    from glasshouse.statistics import minimum_detectable_effect, tost

    parts = []
    for group in ("p2d", "d2p"):
        estimate, p = tost(_gaps(frame, "reverse", group=group), 0.5)
        parts.append(f"{group} {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], p = {p:.2g}")
    gaps = frame.assign(gap=frame["logprob"] - frame["random"])
    gaps = gaps[gaps["arm"] == "reverse"]["gap"]
    least = minimum_detectable_effect(len(gaps), sd=float(gaps.std()))
    return f"by group: {'; '.join(parts)}; smallest gap this could show {least:.2f} nats"


def _all(what: str, models: dict[str, pd.DataFrame]) -> str:
    said = (f"{name}: same {_rate(f, 'same').value:.2f}, reverse {_rate(f, 'reverse').value:.3f}"
            for name, f in models.items())  # fmt: skip
    return f"{what} " + "; ".join(said)


def _table(models: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    rows = []
    for name, frame in models.items():
        for (arm, group, direction), part in frame.groupby(["arm", "group", "direction"]):
            accuracy = _rate(part, arm)
            rows.append({
                "model": name, "arm": arm, "group": group, "direction": direction,
                "entities": accuracy.n, "accuracy": accuracy.value, "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high, "logprob": part["logprob"].mean(),
                "logprob_random": part["random"].mean(), "reciprocal_rank": part["reciprocal_rank"].mean(),
                "auroc": part["above"].mean(),
            })  # fmt: skip
    # NaN (not measured in this model) is said as nothing.
    return [{k: None if isinstance(v, float) and v != v else v for k, v in row.items()} for row in rows]


def _figure(table: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for arm in ("same", "reverse", "both"):
        rows = [row for row in table if row["arm"] == arm]
        figure.add_trace(
            go.Bar(
                name=arm,
                x=[f"{row['model']}: {row['group']}, asked {row['direction']}" for row in rows],
                y=[row["accuracy"] for row in rows],
                error_y={
                    "array": [row["accuracy_high"] - row["accuracy"] for row in rows],
                    "arrayminus": [row["accuracy"] - row["accuracy_low"] for row in rows],
                },
            )
        )
    return figure.update_layout(yaxis_title="answered, share", title="Told in one order, asked in both")
