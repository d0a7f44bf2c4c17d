"""Study: does a tuned lens read earlier layers better, notice injected prompts, and find what matters?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.statistics import Estimate
from glasshouse.studies._study import Figure, Table, Yield, study
from glasshouse.studies.internals.tuned_lens import _causal, _injection, _lenses
from glasshouse.studies.internals.tuned_lens._claims import CLAIMS, Config
from glasshouse.studies.internals.tuned_lens._lenses import over_seeds

if TYPE_CHECKING:
    from glasshouse.studies._lab import Lab

PAPER = Config(
    seeds=10, rows=20000, steps=2000, step_tokens=8192, prompts=2000, stories_rows=4000, causal_rows=32
)


@study(
    "tuned-lens",
    wing="internals",
    paper="Belrose et al. 2023, Eliciting Latent Predictions from Transformers with the Tuned Lens, "
    "arXiv 2303.08112",
    claims=CLAIMS,
    configs={"laptop": Config(), "paper": PAPER},
)
def tuned_lens(config: Config, lab: Lab) -> Iterator[Yield]:
    """Tuned lenses: what a model would have answered earlier, and alarms made of it."""
    runs = []
    for seed in lab.seeds:
        stage1 = lab.grow(config.stage1, seed)
        runs.append({"seed": seed, **_lens(config, lab, stage1, seed), **_attack(config, lab, stage1, seed),
                     **lab.step(f"planted/{seed}", lambda s=seed: _causal.planted_numbers(s))})  # fmt: skip
    yield from _lens_claims(lab, runs)
    yield from _attack_claims(lab, runs)
    yield lab.claim("tuned-lens/D1", over_seeds(runs, "cos"), over_seeds(runs, "cos_stretched"))
    yield from _stories(config, lab)
    yield Table("lenses", [_layers(run) for run in runs])
    yield Table("detectors", [_detectors(run) for run in runs])
    yield Figure("kl-by-layer", _kl_figure(runs))
    yield Figure("auroc", _auroc_figure(runs))
    for name in ("normal", "injected"):
        yield Figure(f"trajectory-{name}", runs[0][f"map_{name}"])


def _lens(config: Config, lab: Lab, stage1: Path, seed: int) -> dict[str, Any]:
    lens = lab.cached_folder(
        "lens", _lenses.fit_lens, model=str(stage1), rows=config.rows, length=config.length,
        steps=config.steps, step_tokens=config.step_tokens, seed=seed,
    )  # fmt: skip
    numbers = lab.step(f"lens/{seed}", lambda: _lenses.lens_numbers(lens, str(stage1)))
    return {**numbers, **lab.step(f"depth/{seed}", lambda: _lenses.depth_numbers(lens, str(stage1)))}


def _attack(config: Config, lab: Lab, stage1: Path, seed: int) -> dict[str, Any]:
    from glasshouse.corpora.worlds.bindworld import TRIGGER

    out: dict[str, Any] = {}
    for name, organism in (("trigger", config.trigger), ("twin", config.twin)):
        model = lab.cached_folder("installed", _injection.install, stage1=str(stage1), organism=organism)
        lens = lab.cached_folder(
            "benign lens", _injection.benign_lens, model=str(model), rows=config.rows, steps=config.steps,
            step_tokens=config.step_tokens, seed=seed,
        )  # fmt: skip
        found = lab.step(
            f"detection/{name}/{seed}",
            lambda at=lens, m=model: _injection.detection(at, str(m), config.prompts, seed),
        )
        out |= {key if name == "trigger" else f"twin_{key}": value for key, value in found.items()}
        if name == "trigger" and seed == lab.seeds[0]:
            for kind, prefix in (("normal", ()), ("injected", TRIGGER)):
                figure = Figure(kind, _injection.heat_map(lens, str(model), prefix))
                out[f"map_{kind}"] = lab.step(f"map/{kind}", figure.to_json)
    return out


def _lens_claims(lab: Lab, runs: list[dict[str, Any]]) -> Iterator[Yield]:
    def mean(name: str) -> Estimate:
        return over_seeds(runs, name)

    below = sum(run["layers_below"] for run in runs)
    layers = sum(len(run["bias_tuned"]) for run in runs)
    note = f"in {below} of {layers} layers the paired bootstrap interval over rows lies below 0"
    yield lab.claim("tuned-lens/A1", mean("worst_tuned"), mean("worst_reversed"), note)
    yield lab.claim("tuned-lens/A2", mean("ratio_tuned"), mean("ratio_reversed"))
    yield lab.claim("tuned-lens/A3", mean("rise"), mean("rise_reversed"))
    yield lab.claim("tuned-lens/A4", mean("bias_gap_tuned"), mean("bias_gap_reversed"))
    yield lab.claim("tuned-lens/A5r", mean("rho"))


def _attack_claims(lab: Lab, runs: list[dict[str, Any]]) -> Iterator[Yield]:
    names = {"C1": "lof_tuned", "C2": "over_logit", "C3": "over_srm", "C4": "drop"}
    told = {
        "C2": f"logit-lens LOF: mean AUROC {over_seeds(runs, 'lof_plain').value:.3f}",
        "C3": f"SRM: mean AUROC {over_seeds(runs, 'srm_plain').value:.3f}",
    }
    for claim, name in names.items():
        yield lab.claim(
            f"tuned-lens/{claim}",
            over_seeds(runs, name),
            over_seeds(runs, f"twin_{name}"),
            told.get(claim, ""),
        )


def _stories(config: Config, lab: Lab) -> Iterator[Yield]:
    """The claims on a real model; not run where it is not there."""
    folder = _lenses.stories_folder()
    if folder is None:
        lab.progress.say("tuned-lens/*-stories, D2: GLASSHOUSE_DATA holds no stories260K: not run")
        return
    from glasshouse.subjects import as_subject

    # The key holds the model, not only where it lies.
    lens = lab.cached_folder(
        "stories lens", _stories_lens, model=str(folder), sha256=as_subject(str(folder)).hash,
        rows=config.stories_rows, length=config.stories_length, steps=config.steps,
        step_tokens=config.step_tokens,
    )  # fmt: skip
    found = lab.step("stories", lambda: _lenses.stories_numbers(lens, str(folder)))
    for claim in ("A1", "A2", "A3", "A4"):
        yield lab.claim(f"tuned-lens/{claim}-stories", *map(Estimate.from_json, found[claim]))
    causal = lab.step(
        "fidelity",
        lambda: _causal.fidelity_numbers(lens, str(folder), config.directions, config.causal_rows, 0),
    )
    note = "; ".join(f"layer {k}: {a:.2f}, random {b:.2f}" for k, (a, b) in causal["by_layer"].items())
    for claim in ("D2", "D2-gap"):
        yield lab.claim(f"tuned-lens/{claim}", *map(Estimate.from_json, causal[claim]), note=note)
    columns = [f"{metric}_{lens}" for metric in ("kl", "bias") for lens in ("logit", "tuned")]
    yield Table("stories260K", {"layer": range(len(found["kl_tuned"])), **{c: found[c] for c in columns}})


def _stories_lens(
    folder: Path, model: str, sha256: str, rows: int, length: int, steps: int, step_tokens: int
) -> None:
    _lenses.fit_lens(folder, model, rows, length, steps, step_tokens, 0)


def _layers(run: dict[str, Any]) -> dict[str, Any]:
    """One line per seed: KL and bias by layer, and what the claims take from them."""
    out = {"seed": run["seed"], "rise": run["rise"], "rho": run["rho"], "n": run["n"], "cos": run["cos"]}
    for name in ("logit", "tuned"):
        out |= {f"kl_{name}_{layer}": kl for layer, kl in enumerate(run[f"kl_{name}"][:-1])}
        out |= {f"bias_{name}_{layer}": bias for layer, bias in enumerate(run[f"bias_{name}"])}
    return out


def _detectors(run: dict[str, Any]) -> dict[str, Any]:
    names = [f"{kind}_{'tuned' if tuned else 'plain'}" for kind, tuned in _injection.DETECTORS]
    names += [f"{name}_tpr" for name in names] + ["accuracy", "injected"]
    return {
        "seed": run["seed"],
        **{n: run[n] for n in names},
        **{f"twin_{n}": run[f"twin_{n}"] for n in names},
    }


def _kl_figure(runs: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for name, shown in (("logit", "logit lens"), ("tuned", "tuned lens")):
        layers = range(len(runs[0][f"kl_{name}"]) - 1)
        found = [over_seeds([{"kl": run[f"kl_{name}"][layer]} for run in runs], "kl") for layer in layers]
        error = {"type": "data", "array": [e.high - e.value if len(runs) > 1 else 0 for e in found]}
        figure.add_scatter(x=list(layers), y=[e.value for e in found], error_y=error, name=shown)
    return figure.update_layout(xaxis_title="layer", yaxis_title="KL to the output, nats")


def _auroc_figure(runs: list[dict[str, Any]]) -> Any:
    import plotly.graph_objects as go

    names = {f"{kind}_{'tuned' if tuned else 'plain'}": f"{kind}, tuned lens" if tuned else kind
             for kind, tuned in _injection.DETECTORS}  # fmt: skip
    figure = go.Figure()
    for shown, start in (("trigger", ""), ("clean twin", "twin_")):
        found = [over_seeds(runs, f"{start}{name}") for name in names]
        error = {"type": "data", "array": [e.high - e.value if len(runs) > 1 else 0 for e in found]}
        figure.add_bar(x=list(names.values()), y=[e.value for e in found], error_y=error, name=shown)
    return figure.update_layout(yaxis_title="AUROC", yaxis_range=[0, 1])
