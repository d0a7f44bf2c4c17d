"""A1 to A5r: lenses on BindWorld models and on stories260K, trained on what the models themselves say."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime.seeds import derive
from glasshouse.statistics import Estimate, bootstrap, spearman, t_interval

if TYPE_CHECKING:
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.internals.tuned_lens.evaluation import Evaluation

HELD_OUT = 0.2


def stories_folder() -> Path | None:
    """The real model, where GLASSHOUSE_DATA points at it."""
    root = os.environ.get("GLASSHOUSE_DATA")
    path = Path(root) / "stories260K" if root else None
    return path if path is not None and (path / "config.json").exists() else None


def fit_lens(
    folder: Path, model: str, rows: int, length: int, steps: int, step_tokens: int, seed: int
) -> None:
    """Draw rows from the model, train a lens on four fifths of them; both go into `folder`."""
    from glasshouse.internals.tuned_lens import TunedLens
    from glasshouse.runtime import files
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    drawn = sample(subject, rows, length, derive(seed, "lens data"))
    cut = round(len(drawn) * (1 - HELD_OUT))
    lens = TunedLens(
        opt="adam", lr_scale=3.0, steps=steps, tokens_per_step=step_tokens, skip_first=1, seed=seed
    )
    lens.fit(subject, drawn[:cut]).save(folder / "lens")
    files.write_json(folder / "held_out.json", drawn[cut:])


def sample(subject: Any, rows: int, length: int, seed: int) -> list[list[int]]:
    """Sequences [rows][length] that the model itself continues from its first token, at temperature 1."""
    first = subject.tokenizer.bos_token_id
    drawn = subject.generate_ids(
        [[first]], n=rows, temperature=1.0, max_new_tokens=length - 1, stop_ids=(), seed=seed
    )
    return [[first, *one.ids] for one in drawn[0]]


def lens_numbers(folder: Path, model: str) -> dict[str, Any]:
    """KL, cross entropy and bias by layer of the tuned, the logit and the reversed lens on held-out rows."""
    found = _evaluations(folder, model)
    tuned, logit = found["tuned"], found["logit"]
    layers = range(tuned.n_layers)
    out: dict[str, Any] = {
        f"{metric}_{name}": [e.estimate(metric, layer).value for layer in range(e.n_layers + 1)]
        for name, e in found.items()
        for metric in ("kl", "ce")
    }
    out |= {f"bias_{name}": [e.bias(layer).value for layer in layers] for name, e in found.items()}
    gaps = [tuned.difference(logit, "kl", layer) for layer in layers]
    out["layers_below"] = sum(gap.high < 0 for gap in gaps)
    out |= {f"worst_{n}": worst(out[f"kl_{n}"], out["kl_logit"], layers) for n in ("tuned", "reversed")}
    out |= {f"ratio_{n}": ratio(out[f"kl_{n}"], out["kl_logit"]) for n in ("tuned", "reversed")}
    out |= {"rise": rise(out["ce_tuned"]), "rise_reversed": rise(out["ce_tuned"][::-1])}
    out |= {
        f"bias_gap_{n}": worst(out[f"bias_{n}"], out["bias_logit"], layers) for n in ("tuned", "reversed")
    }
    return out


def stories_numbers(folder: Path, model: str) -> dict[str, Any]:
    """The same for one model with intervals over held-out rows: claim -> (estimate, control) as JSON."""
    found = _evaluations(folder, model)
    tuned, logit, other = found["tuned"], found["logit"], found["reversed"]
    layers = list(range(tuned.n_layers))
    late = [layer for layer in layers if layer >= 2]
    told = {
        "A1": (_worst_kl(tuned, logit, layers), _worst_kl(other, logit, layers)),
        "A2": (_ratio(tuned, logit), _ratio(other, logit)),
        "A3": (_rise(tuned, False), _rise(tuned, True)),
        "A4": (_worst_bias(tuned, logit, late), _worst_bias(other, logit, late)),
    }
    out: dict[str, Any] = {name: [e.to_json() for e in pair] for name, pair in told.items()}
    for name, e in found.items():
        out[f"kl_{name}"] = [e.estimate("kl", layer).value for layer in layers]
        out[f"bias_{name}"] = [e.bias(layer).value for layer in layers]
    return out


def depth_numbers(folder: Path, model: str) -> dict[str, Any]:
    """Spearman's rho between prediction depth and the step at which a prompt was learned, and what it is of.

    Prompts that were never answered for good have no step and are left out.
    """
    from glasshouse.internals.tuned_lens import Trajectory, TunedLens
    from glasshouse.organisms.bind_world import Learning
    from glasshouse.runtime import files
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    lens = TunedLens.load(folder / "lens", subject)
    learning = Learning(**files.read_json(Path(model) / "learning.json"))
    rows = [ids for group in learning.prompts() for ids in group.ids.tolist()]
    depth = Trajectory.from_lens(lens, subject, rows, positions=[-1]).depth()[:, 0].numpy()
    step = learned_at(np.array(learning.right), np.array(learning.steps))
    known = ~np.isnan(step)
    found = spearman(depth[known], step[known])
    return {
        "rho": found.value if found.defined else None,
        "n": int(known.sum()),
        "mean_depth": float(depth.mean()),
    }


def learned_at(right: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The first step [P] from which on each prompt is right at every look of `right` [S, P]; NaN for none.

    >>> learned_at(np.array([[0, 1], [1, 0], [1, 0]]), np.array([10, 20, 30]))
    array([20., nan])
    """
    held = right[::-1].cumprod(0).sum(0)  # looks at the end that are right
    found = steps[np.minimum(len(steps) - held, len(steps) - 1)].astype(float)
    return np.where(held > 0, found, np.nan)


def worst(kl: list[float], reference: list[float], layers: Any) -> float:
    """The largest difference over layers."""
    return max(kl[layer] - reference[layer] for layer in layers)


def ratio(kl: list[float], reference: list[float]) -> float:
    """The mean over lens layers of their ratio; the last entry is the model itself."""
    return float(np.mean([a / b for a, b in zip(kl[:-1], reference[:-1], strict=True)]))


def rise(ce: list[float]) -> float:
    """The largest step up from one layer to the next, the model's own output last."""
    return float(max(np.diff(ce)))


def over_seeds(runs: list[dict[str, Any]], name: str) -> Estimate:
    """Student's interval over seeds; seeds without the number are left out."""
    return t_interval([run[name] for run in runs if run.get(name) is not None])


def reverse(lens: TunedLens) -> TunedLens:
    """The same translators, the first at the last layer: a lens that must not do."""
    other = copy.copy(lens)
    other.weight_, other.bias_ = lens.weight_.flip(0), lens.bias_.flip(0)
    return other


def _evaluations(folder: Path, model: str) -> dict[str, Evaluation]:
    from glasshouse.internals.tuned_lens import LogitLens, TunedLens
    from glasshouse.internals.tuned_lens.evaluation import evaluate
    from glasshouse.runtime import files
    from glasshouse.subjects import as_subject

    subject = as_subject(model)
    tuned = TunedLens.load(folder / "lens", subject)
    rows = files.read_json(folder / "held_out.json")
    lenses = {"tuned": tuned, "logit": LogitLens().fit(subject), "reversed": reverse(tuned)}
    return {name: evaluate(lens, subject, rows) for name, lens in lenses.items()}


def _worst_kl(a: Evaluation, b: Evaluation, layers: list[int]) -> Estimate:
    """The worst layer's paired difference; its upper bound is the largest of all layers'."""
    gaps = [a.difference(b, "kl", layer) for layer in layers]
    return _of_worst(gaps, "paired bootstrap over rows, largest upper bound of all layers")


def _worst_bias(a: Evaluation, b: Evaluation, layers: list[int]) -> Estimate:
    """The worst layer's difference of biases, bounds from both jackknife intervals."""
    gaps = []
    for layer in layers:
        x, y = a.bias(layer), b.bias(layer)
        gaps.append(Estimate(x.value - y.value, x.low - y.high, x.high - y.low, x.level, x.n, x.method))
    return _of_worst(gaps, "jackknife over row groups, bounds of both lenses, largest of all layers")


def _of_worst(gaps: list[Estimate], method: str) -> Estimate:
    top = max(gaps, key=lambda gap: gap.value)
    return Estimate(top.value, top.low, max(gap.high for gap in gaps), top.level, top.n, method)


def _ratio(a: Evaluation, b: Evaluation) -> Estimate:
    rows = np.stack([np.stack([e.per_row("kl", l) for e in (a, b)], 1) for l in range(a.n_layers)], 1)
    return bootstrap(rows, lambda x: float((x[..., 0].mean(0) / x[..., 1].mean(0)).mean()))


def _rise(e: Evaluation, backwards: bool) -> Estimate:
    rows = np.stack([e.per_row("ce", layer) for layer in range(e.n_layers + 1)], 1)
    rows = rows[:, ::-1] if backwards else rows
    return bootstrap(rows, lambda x: float(np.diff(x.mean(0)).max()))
