"""LoGra: do projected gradients on disk say what full gradients say, and at what price?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, bootstrap, bootstrap_paired, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.fashion import CONVERGED, NOISY, data_file, shared_bank
from glasshouse.studies.attribution.logra.canary import LOW, canary_seed
from glasshouse.studies.attribution.logra.images import RANKS, lds_by_rank
from glasshouse.studies.attribution.logra.speed import throughput
from glasshouse.studies.attribution.logra.words import DISGUISES, data_folder, traced

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = "Choe et al. 2024, arXiv 2405.13954"
FEW, MANY = RANKS[0], RANKS[-1]


@dataclass(frozen=True)
class Config:
    """Banks of `subsets` x `bank_seeds` models; `models` models scored; `seeds` canary models without and
    with `outliers` gibberish rows; `speed_rows` x `speed_queries` pairs; `words_rows` GSM8K problems, of
    which `words_planted` are asked about in disguise.
    """

    seeds: int = 4
    models: int = 2
    rank: int = 16
    outliers: int = 10
    subsets: int = 60
    bank_seeds: int = 2
    speed_rows: int = 4443
    speed_queries: int = 100
    speed_pieces: int = 6
    words_rows: int = 1000
    words_planted: int = 60
    words_epochs: float = 3
    words_shown: int = 6


CLAIMS = (
    ClaimSpec(
        "logra/4a",
        f"Agreement with retraining rises with the rank (LDS at rank {MANY} minus rank {FEW}, converged)",
        Threshold(">", 0.0),
        null=0.0,
        control="the same difference with the training rows permuted",
    ),
    ClaimSpec(
        "logra/4b",
        f"At rank {MANY} random sketches agree with retraining as EK-FAC does (LDS difference)",
        Threshold(">=", -0.05, why="the spec's margin; every value of the interval must stay within it"),
        control="the gradient dot product minus EK-FAC",
        paper="LoGra performs on par with EK-FAC",
    ),
    ClaimSpec(
        "logra/4c",
        f"Rank {MANY} sketches agree with retraining better than the gradient dot product (LDS difference)",
        Threshold(">=", 0.10),
        null=0.0,
        control="the same sketches without curvature, minus the gradient dot product",
    ),
    ClaimSpec(
        "logra/4d",
        f"On a model that has not converged the smaller rank agrees better (PCA, rank {FEW} minus {MANY})",
        Threshold(">", 0.0),
        null=0.0,
        control="the same difference on the converged model",
    ),
    ClaimSpec(
        "logra/5a",
        "Scores from disk come at least fifty times as fast as EK-FAC's (pairs per CPU second, ratio)",
        Threshold(">=", 50.0),
        control="LoGra that sketches the rows anew instead of reading them",
        paper="up to 6,500 times for Llama-3-8B on one GPU",
    ),
    ClaimSpec(
        "logra/5br",
        "Pairs scored a CPU second from disk, 4,443 rows and 100 queries",
        Threshold("report"),
        paper="79,003.9 pairs/s on one 80 GB GPU",
    ),
    ClaimSpec(
        "logra/6a",
        "Rank 16 finds the rows that alone taught a canary as EK-FAC does (recall at 20, difference)",
        Threshold(">=", -0.1),
        control="a random ranking minus EK-FAC",
    ),
    ClaimSpec(
        "logra/6b",
        "With ten gibberish rows in the training data cosine finds more planted rows than dot (recall)",
        Threshold(">", 0.0),
        null=0.0,
        control="the same difference without gibberish rows",
        paper="l-RelatIF takes high-norm outliers from the top",
    ),
    ClaimSpec(
        "logra/8r",
        "GSM8K problems with all names, numbers and longer words changed: share whose source is first",
        Threshold("report"),
        control="the same on a model whose weights were shuffled",
    ),
)


@study(
    "logra",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={
        "laptop": Config(),
        "paper": Config(seeds=20, models=5, subsets=100, bank_seeds=5, words_rows=7473, words_epochs=10),
    },
)
def logra(config: Config, lab: Lab) -> Iterator[Yield]:
    """LoGra keeps what influence needs in a small sketch of every row."""
    runs = [
        lab.step(f"canary-{seed}", lambda seed=seed: canary_seed(seed, config.rank, config.outliers))
        for seed in lab.seeds
    ]
    yield from _canary_claims(lab, runs, config)
    yield from _speed_claims(lab, config)
    if data_folder() is None:
        lab.progress.say("logra/8r needs the GSM8K folder that GLASSHOUSE_DATA points at: not run")
    else:
        yield from _words_claim(lab, config)
    if data_file() is None:
        lab.progress.say("logra/4a to 4d need the images that GLASSHOUSE_DATA points at: not run")
        return
    yield from _lds_claims(lab, config)


def _canary_claims(lab: Lab, runs: list[dict[str, Any]], config: Config) -> Iterator[Yield]:
    own = f"raw {config.rank}, damping {LOW:g}, dot"
    note = f"{len(runs)} seeds; Fisher of the sketches, damping {LOW:g} of its mean eigenvalue, mode dot"
    estimate = t_interval([run["clean"][own] - run["ekfac"] for run in runs])
    chance = t_interval([run["random"] - run["ekfac"] for run in runs])
    yield lab.claim("logra/6a", estimate, chance, note)
    # EK-FAC of the sketches: with the Fisher matrix no gibberish row comes near the top in either mode.
    name = f"ekfac {config.rank}, damping 0.1"
    gain = {
        arm: t_interval([run[arm][f"{name}, cosine"] - run[arm][f"{name}, dot"] for run in runs])
        for arm in ("outliers", "clean")
    }
    note = f"{len(runs)} seeds; EK-FAC of the sketches, damping 0.1 of the mean eigenvalue"
    yield lab.claim("logra/6b", gain["outliers"], gain["clean"], note)
    rows = []
    for key in (k for k in runs[0]["clean"] if not k.endswith("gibberish")):
        row: dict[str, Any] = {"method": key}
        for arm in ("clean", "outliers"):
            row[f"recall, {arm}"] = float(np.mean([run[arm][key] for run in runs]))
            row[f"by seed, {arm}"] = ", ".join(f"{run[arm][key]:.2f}" for run in runs)
        row["gibberish in the top 20"] = float(
            np.mean([run["outliers"][f"{key}: gibberish"] for run in runs])
        )
        rows.append(row)
    rows.append({
        "method": "EK-FAC on full gradients", "recall, clean": float(np.mean([run["ekfac"] for run in runs])),
        "by seed, clean": ", ".join(f"{run['ekfac']:.2f}" for run in runs),
    })  # fmt: skip
    yield Table("canary", rows)


def _speed_claims(lab: Lab, config: Config) -> Iterator[Yield]:
    def measure() -> dict[str, Any]:
        folder = lab.run.folder("speed")
        return throughput(folder, config.speed_rows, config.speed_queries, config.speed_pieces)

    found = lab.step("speed", measure)
    note = f"{config.speed_rows} rows, {config.speed_queries} queries, rank 16, one thread, CPU seconds"
    yield lab.claim("logra/5a", t_interval(found["ratio"]), t_interval(found["again_ratio"]), note)
    about = f"{found['bytes_per_row']:.0f} bytes a row, a search needs {_mib(found)} beyond imports"
    yield lab.claim("logra/5br", t_interval(found["disk"]), note=about)
    yield Table(
        "speed",
        [
            {"what": "pairs a CPU second, from disk", "value": float(np.mean(found["disk"]))},
            {"what": "pairs a CPU second, EK-FAC", "value": float(np.mean(found["ekfac"]))},
            {"what": "pairs a CPU second, sketching anew", "value": float(np.mean(found["again"]))},
            {"what": "rows logged a CPU second", "value": found["log_rows_per_second"]},
            {"what": "bytes a row", "value": found["bytes_per_row"]},
            {"what": "peak memory of a search beyond imports, MiB", "value": found["peak_mib"]},
        ],
    )


def _mib(found: dict[str, Any]) -> str:
    return "an unknown amount" if found["peak_mib"] is None else f"{found['peak_mib']:.0f} MiB"


def _words_claim(lab: Lab, config: Config) -> Iterator[Yield]:
    found = lab.step(
        "gsm8k",
        lambda: traced(
            lab.run.folder("gsm8k"), config.words_rows, config.words_planted, config.words_epochs,
            config.rank, lab.seeds[0], config.words_shown,
        ),
    )  # fmt: skip
    ranks = found["ranks"]
    note = (
        f"{config.words_planted} of {config.words_rows} rows, {found['tokens']} tokens, loss "
        f"{found['loss'][0]:.2f} to {found['loss'][1]:.2f} nats a token, rank {config.rank}, cosine"
    )
    hit = {name: _within(places, 1) for name, places in ranks["veiled"].items()}
    yield lab.claim("logra/8r", hit["logra, cosine"], hit["shuffled weights, cosine"], note)
    rows = []
    for kind in DISGUISES:
        for name, places in ranks[kind].items():
            row: dict[str, Any] = {"queries": kind, "method": name}
            for k in (1, 10):
                one = _within(places, k)
                row |= {f"source in first {k}": one.value, f"low {k}": one.low, f"high {k}": one.high}
            rows.append(row)
    yield Table("gsm8k-sources", rows)
    yield Table("gsm8k-test-queries", found["shown"])
    kinds = ("original", *DISGUISES)
    yield Table("gsm8k-disguises", [dict(zip(kinds, texts, strict=True)) for texts in found["examples"]])


def _within(places: list[int], k: int) -> Estimate:
    """The share of sources among the first k, bootstrap over queries."""
    hits = [float(place < k) for place in places]
    return bootstrap(hits) if len(set(hits)) > 1 else _constant(hits)


def _constant(hits: list[float]) -> Estimate:
    from glasshouse.statistics import wilson

    return wilson(int(sum(hits)), len(hits))


def _lds_claims(lab: Lab, config: Config) -> Iterator[Yield]:
    found = {}
    for recipe in (CONVERGED, NOISY):

        def measure(recipe: Any = recipe) -> dict[str, list[float]]:
            bank = shared_bank(lab, recipe, subsets=config.subsets, seeds=config.bank_seeds)
            return lds_by_rank(recipe, bank, config.models)

        found[recipe.name] = lab.step(f"lds-{recipe.name}", measure)
    one, noisy = found["converged"], found["noisy"]
    note = f"{config.subsets} halves, 60 queries, mean over {config.models} single models"

    def minus(table: dict[str, list[float]], a: str, b: str) -> Estimate:
        return bootstrap_paired(table[a], table[b])

    most, least = f"random {MANY}", f"random {FEW}"
    permuted = minus(one, f"{most}, rows permuted", f"{least}, rows permuted")
    yield lab.claim("logra/4a", minus(one, most, least), permuted, note)
    yield lab.claim("logra/4b", minus(one, most, "ekfac"), minus(one, "identity", "ekfac"), note)
    plain = minus(one, f"{most}, no curvature", "identity")
    yield lab.claim("logra/4c", minus(one, most, "identity"), plain, note)
    shrink = (f"pca {FEW}", f"pca {MANY}")
    yield lab.claim("logra/4d", minus(noisy, *shrink), minus(one, *shrink), note)
    rows = [
        {"model": model, "scores": name, **bootstrap(values).to_json()}
        for model, table in found.items()
        for name, values in table.items()
    ]
    yield Table("lds", rows)
    yield Figure("lds", _figure(found))


def _figure(found: dict[str, dict[str, list[float]]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for model, dash in (("converged", "solid"), ("noisy", "dot")):
        for init in ("random", "pca"):
            each = [bootstrap(found[model][f"{init} {rank}"]) for rank in RANKS]
            figure.add_scatter(
                x=list(RANKS), y=[e.value for e in each], name=f"{init}, {model}", line={"dash": dash},
                error_y={
                    "type": "data", "symmetric": False, "array": [e.high - e.value for e in each],
                    "arrayminus": [e.value - e.low for e in each],
                },
            )  # fmt: skip
        level = float(np.mean(found[model]["ekfac"]))
        figure.add_scatter(
            x=[RANKS[0], RANKS[-1]], y=[level, level], mode="lines", name=f"EK-FAC, {model}",
            line={"dash": dash, "width": 1},
        )  # fmt: skip
    return figure.update_layout(xaxis_title="rank", yaxis_title="LDS", xaxis_type="log")


__all__ = ["CLAIMS", "Config", "logra"]
