"""Study: does accuracy before memorization predict test accuracy (Kang et al. 2024)?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.evidence.claims import ClaimSpec, Threshold
from glasshouse.statistics import Estimate, t_interval
from glasshouse.studies import Figure, Table, Yield, study
from glasshouse.studies.attribution.pre_memorization import growing, organism, records

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = "Kang, Setlur, Ghosh, Steinhardt, Tomlin, Levine, Kumar 2024, arXiv 2411.07681"
THIRD = "the spec asks for agreement to the third decimal: one unit of it is the margin"


@dataclass(frozen=True)
class Config:
    """Sizes. `rates` x `rows` are the fine-tunings that the claims are about, `calibration` those (of another
    seed) that choose the threshold.
    """

    seeds: int = 3
    base_steps: int = 100
    rates: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
    rows: tuple[int, ...] = (200, 300)
    epochs: int = 40
    keep: tuple[int, ...] = (1, 3, 8, 18, 28, 40)
    calibration: tuple[tuple[float, int], ...] = ((3e-3, 200), (3e-3, 300))
    k: int = 5
    tests: int = 300
    start: int = 200
    curated: tuple[int, ...] = (0, 50, 100, 133)
    final: int = 200
    growing_base: int = 250
    growing_epochs: int = 9
    growing_tests: int = 400


CLAIMS = (
    ClaimSpec(
        "pre-memorization/A1a",
        "GSM8K, 39 checkpoints of 10 Llama-3-8B runs: identity R^2 of test accuracy on PM is 0.951",
        Threshold("between", 0.950, 0.952, why=THIRD),
        control="plain training accuracy on the same identity line",
        paper="R^2 about or above 0.9",
    ),
    ClaimSpec(
        "pre-memorization/A1b",
        "GSM8K: mean absolute error of PM as a prediction of test accuracy is 0.027",
        Threshold("between", 0.026, 0.028, why=THIRD),
        control="plain training accuracy",
    ),
    ClaimSpec(
        "pre-memorization/A2a",
        "MATH, 27 checkpoints of 7 Llama-3-8B runs: identity R^2 of test accuracy on PM is 0.943",
        Threshold("between", 0.942, 0.944, why=THIRD),
        control="plain training accuracy on the same identity line",
        paper="R^2 about or above 0.9",
    ),
    ClaimSpec(
        "pre-memorization/A2b",
        "MATH: mean absolute error of PM as a prediction of test accuracy is 0.0067",
        Threshold("between", 0.0057, 0.0077, why=THIRD),
        control="plain training accuracy",
    ),
    ClaimSpec(
        "pre-memorization/A3",
        "The threshold sweep peaks at the authors' points, -2.3 (GSM8K) and -1.7 (MATH): largest distance",
        Threshold("<=", 0.05, why="half a step of the grid of 0.1"),
        control="the sweep with every row given another row's perplexities",
    ),
    ClaimSpec(
        "pre-memorization/A4r",
        "Train, PM and test accuracy of three runs as the spec prints them: largest of nine differences",
        Threshold("report"),
    ),
    ClaimSpec(
        "pre-memorization/B1",
        "Fine-tunings of the organism: identity R^2 of test accuracy on PM is at least 0.8",
        Threshold(">=", 0.8),
        null=0.0,
        control="plain training accuracy on the same identity line",
        paper="R^2 about or above 0.9 for Llama-3-8B and Gemma-2-9B",
    ),
    ClaimSpec(
        "pre-memorization/B2",
        "Fine-tunings of the organism: mean absolute error of PM is at most 0.05",
        Threshold("<=", 0.05),
        null=0.15,
        control="plain training accuracy",
    ),
    ClaimSpec(
        "pre-memorization/B3",
        "Fine-tunings of the organism: training accuracy misses test accuracy by 0.15 or more on average",
        Threshold(">=", 0.15),
        null=0.05,
        control="the error of PM on the same checkpoints",
    ),
    ClaimSpec(
        "pre-memorization/B4",
        "PM of problems that can be learned exceeds PM of those that can only be copied by 0.3 or more",
        Threshold(">=", 0.3),
        null=0.0,
        control="the same difference of plain training accuracy",
    ),
    ClaimSpec(
        "pre-memorization/B5",
        'Behind "First", right rows with PM < 0.3 lose at least 0.15 more accuracy than those with PM > 0.8',
        Threshold(">=", 0.15),
        null=0.0,
        control="the same rows split at random",
        paper="accuracy of low-PM rows falls under perturbation, that of high-PM rows hardly",
    ),
    ClaimSpec(
        "pre-memorization/C1",
        "Two thirds of the added data reach i.i.d.'s final accuracy when chosen by low PM (difference)",
        Threshold(">=", 0.0),
        control="two thirds of the i.i.d. data, minus all of it",
        paper="curation is 1.5 to 2 times as data-efficient",
    ),
)


@study(
    "pre-memorization",
    wing="attribution",
    paper=PAPER,
    claims=CLAIMS,
    configs={
        "laptop": Config(),
        "paper": Config(
            rates=(1e-4, 5e-4, 1.5e-3, 3e-3, 6e-3), rows=(200, 400), epochs=60,
            keep=(1, 3, 6, 12, 24, 40, 60),
            calibration=((1.5e-3, 200), (3e-3, 400), (6e-3, 400)), k=10, tests=1000,
            curated=(0, 50, 100, 133, 150, 200), growing_tests=2000,
        ),
    },
)  # fmt: skip
def pre_memorization(config: Config, lab: Lab) -> Iterator[Yield]:
    """Accuracy before memorization predicts test accuracy, on real records and on an organism."""
    if records.data_folder() is None:
        lab.progress.say("A1a to A4r need the records that GLASSHOUSE_DATA points at: not run")
    else:
        yield from _records(lab)
    base = str(lab.cached_folder("base", organism.base_model, seed=0, steps=config.base_steps))
    threshold = yield from _organism(config, lab, base)
    uneven = lab.cached_folder("base", organism.base_model, seed=0, steps=config.growing_base, uneven=True)
    yield from _growing(config, lab, str(uneven), threshold)


# -- A: real records -----------------------------------------------------------------------------------------


def _records(lab: Lab) -> Iterator[Yield]:
    sets = {name: lab.step(f"records-{name}", _summary(name)) for name in records.THRESHOLDS}
    for name, a, b in (("gsm8k", "A1a", "A1b"), ("math", "A2a", "A2b")):
        one = sets[name]
        for claim, key in ((a, "r2"), (b, "mae")):
            ours, rows = Estimate.from_json(one[key]), Estimate.from_json(one["control"][key])
            note = f"bootstrap over {one['runs']} runs: [{ours.low:.3f}, {ours.high:.3f}]"
            exact, control = (Estimate.exact(e.value, one["points"], 1e-9) for e in (ours, rows))
            yield lab.claim(f"pre-memorization/{claim}", exact, control, note)
        yield Figure(f"records-{name}", _scatter(one, name))
        yield Table(f"predictors-{name}", one["rivals"])
    yield _peaks(lab, sets)
    yield Table("threshold", [{"set": n, **_sweep(one)} for n, one in sets.items()])
    yield Table("savings", [{"set": n, **one["savings"]} for n, one in sets.items()])
    rows = lab.step("examples", records.examples)
    off = Estimate.exact(max(row["off"] for row in rows), 9, 1e-9)
    yield lab.claim("pre-memorization/A4r", off)
    yield Table("examples", rows)


def _summary(name: str) -> Any:
    return lambda: records.summary(name)


def _peaks(lab: Lab, sets: dict[str, Any]) -> Yield:
    def off(key: str) -> float:
        return max(abs(one[key] - records.THRESHOLDS[name]) for name, one in sets.items())

    exact, control = (Estimate.exact(off(key), len(sets), 1e-9) for key in ("peak", "scrambled_peak"))
    said = ", ".join(f"{name} {one['peak']:.1f}" for name, one in sets.items())
    return lab.claim("pre-memorization/A3", exact, control, f"peaks: {said}")


def _sweep(one: dict[str, Any]) -> dict[str, Any]:
    return {
        "peak": one["peak"], "low": one["peak_interval"]["low"], "high": one["peak_interval"]["high"],
        "R^2 at peak": max(one["curve"]), "label-free": one["flat"],
        "R^2 at label-free": one["flat_r2"]["value"],
    }  # fmt: skip


# -- B: the organism -----------------------------------------------------------------------------------------


def _recorded(config: Config, lab: Lab, base: str, seed: int, lr: float, rows: int) -> Any:
    return lab.cached_folder(
        "run", organism.record_run, base=base, seed=seed, lr=lr, epochs=config.epochs, rows=rows,
        keep=list(config.keep), k=config.k, tests=config.tests,
    )  # fmt: skip


def _organism(config: Config, lab: Lab, base: str) -> Any:
    """Yields the claims B and returns the threshold, chosen on runs of another seed."""
    from glasshouse.attribution.pre_memorization import calibrate_threshold, predict_test

    chosen_on = [organism.load(_recorded(config, lab, base, 1, lr, n))[0] for lr, n in config.calibration]
    chosen = calibrate_threshold(chosen_on)
    folders = [_recorded(config, lab, base, 0, lr, n) for lr in config.rates for n in config.rows]
    runs = [organism.load(folder) for folder in folders]
    trajs = [traj for traj, _ in runs]
    found = predict_test(trajs, chosen)
    note = f"log(log p) {chosen.threshold:.1f}, chosen on {len(chosen_on)} runs of another seed"
    yield lab.claim("pre-memorization/B1", found.r2, found.control["r2"], note)
    yield lab.claim("pre-memorization/B2", found.mae, found.control["mae"], note)
    yield lab.claim("pre-memorization/B3", found.control["mae"], found.mae, note)
    gaps = [organism.gap(traj, extra["learnable"], chosen.threshold) for traj, extra in runs]
    pair = (t_interval([gap[key] for gap in gaps]) for key in ("pm", "train"))
    yield lab.claim("pre-memorization/B4", *pair, "over runs, at the last checkpoint")
    yield _perturbed(config, lab, folders, trajs, chosen.threshold)
    yield Table("runs", found.to_frame())
    yield Table("plant", [{"run": t.name, **gap} for t, gap in zip(trajs, gaps, strict=True)])
    yield Table("predictors-organism", _rivals(runs, found))
    yield Figure("organism", _scatter(
        {"predicted": found.predicted.tolist(), "measured": found.measured.tolist(),
         "train": found.train.tolist()}, "organism",
    ))  # fmt: skip
    return chosen.threshold


def _perturbed(
    config: Config, lab: Lab, folders: Sequence[Any], trajs: Sequence[Any], threshold: float
) -> Yield:
    from glasshouse.attribution.pre_memorization.perturbation import two_means
    from glasshouse.runtime.errors import InputError

    drop, copied, used = list[float](), list[bool](), 0
    for place, (folder, traj) in enumerate(zip(folders, trajs, strict=True)):
        if traj.accuracy[-1].mean() < organism.HIGH:  # nothing was copied in this run
            continue

        def ask(folder: Any = folder) -> Any:
            try:
                return organism.perturbed(folder, threshold, seed=0, k=config.k)
            except InputError as error:
                return {"drop": [], "copied": [], "why": str(error)}

        one = lab.step(f"perturbed-{place}", ask)
        drop, copied, used = drop + one["drop"], copied + one["copied"], used + bool(one["drop"])
    if not drop:
        why = Estimate.undefined("no run had enough rows of both kinds")
        return lab.claim("pre-memorization/B5", why, why)
    values, mask = np.array(drop), np.array(copied)
    shuffled = np.random.default_rng(0).permutation(mask)
    real, control = (two_means(values[m], values[~m])[0] for m in (mask, shuffled))
    note = f"{int(mask.sum())} copied and {int((~mask).sum())} learned rows of {used} runs"
    return lab.claim("pre-memorization/B5", real, control, note)


def _rivals(runs: Sequence[Any], found: Any) -> list[dict[str, Any]]:
    from glasshouse.attribution.pre_memorization.baselines import from_other_runs, mean_logppl
    from glasshouse.attribution.pre_memorization.prediction import identity_r2, mae

    measured = {traj.name: traj.test_accuracy for traj, _ in runs}

    def line(feature: dict[str, Any]) -> Any:
        return np.concatenate(list(from_other_runs(feature, measured).values()))

    def column(key: str) -> dict[str, Any]:
        return {traj.name: np.array([one[key] for one in extra["rivals"]]) for traj, extra in runs}

    guesses = {
        "pre-memorization accuracy": found.predicted, "training accuracy": found.train,
        "thresholded confidence (needs test prompts)": np.concatenate(list(column("atc").values())),
        "mean log-perplexity, line of other runs": line({t.name: mean_logppl(t) for t, _ in runs}),
        "distance from start, line of other runs": line(column("distance")),
        "gradient variance, line of other runs": line(column("gradient_variance")),
    }  # fmt: skip
    return [records._row(n, found.measured, guess, identity_r2, mae) for n, guess in guesses.items()]


# -- C: growing a training set -------------------------------------------------------------------------------


def _growing(config: Config, lab: Lab, base: str, threshold: float) -> Iterator[Yield]:
    part = max(a for a in config.curated if a <= 2 * config.final / 3)
    arms = {"curated": config.curated, "i.i.d.": (part, config.final), "longest": (part,)}
    rows = [
        row
        for seed in lab.seeds
        for kind, amounts in arms.items()
        for row in lab.step(f"arm-{kind}-{seed}", _arm(config, base, seed, kind, amounts, threshold))
    ]

    def at(kind: str, amount: int) -> list[float]:
        return [row["accuracy"] for row in rows if row["arm"] == kind and row["added"] == amount]

    end = at("i.i.d.", config.final)
    ours, control = (
        t_interval([a - b for a, b in zip(at(kind, part), end, strict=True)])
        for kind in ("curated", "i.i.d.")
    )
    note = f"{part} curated against {config.final} i.i.d. problems, {len(end)} seeds"
    yield lab.claim("pre-memorization/C1", ours, control, note)
    yield Table("growing", rows)


def _arm(config: Config, base: str, seed: int, kind: str, amounts: Sequence[int], threshold: float) -> Any:
    return lambda: growing.arm(
        base, seed, kind, amounts, start=config.start, epochs=config.growing_epochs, threshold=threshold,
        tests=config.growing_tests,
    )  # fmt: skip


def _scatter(one: dict[str, Any], name: str) -> Any:
    import plotly.graph_objects as go

    top = max(*one["predicted"], *one["measured"], *one["train"])
    figure = go.Figure(
        [
            go.Scatter(x=one["predicted"], y=one["measured"], mode="markers", name="before memorization"),
            go.Scatter(x=one["train"], y=one["measured"], mode="markers", name="training accuracy"),
            go.Scatter(x=[0, top], y=[0, top], mode="lines", name="identity"),
        ]
    )
    figure.update_layout(
        title=f"Test accuracy against its prediction: {name}", xaxis_title="predicted",
        yaxis_title="test accuracy",
    )  # fmt: skip
    return figure
