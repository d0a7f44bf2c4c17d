"""What a reward model is worth: held-out accuracy, calibration, length, and how it fares when optimised."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.governance.rlhf_disclosure.preferences import Rating
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

BINS = 10


@dataclass(frozen=True)
class Scorer:
    """A reward model as `score(prompts, responses) -> rewards`; `identity` changes when it does."""

    score: Callable[[Sequence[str], Sequence[str]], Sequence[float]]
    name: str
    identity: str


@dataclass(frozen=True)
class RewardReport:
    """Measurements on held-out preferences. `length_correlation` is Spearman's of reward and characters."""

    accuracy: Estimate
    calibration_error: Estimate
    length_correlation: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: value.to_json() for name, value in vars(self).items()}


def as_scorer(function: Callable[[str, str], float], *, name: str, identity: str | None = None) -> Scorer:
    """A plain function (prompt, response) -> reward as a scorer; `identity` tells versions of it apart."""
    return Scorer(
        lambda p, r: [float(function(a, b)) for a, b in zip(p, r, strict=True)], name, identity or name
    )


def sequence_classifier(folder: Path | str, *, batch: int = 16) -> Scorer:
    """Any saved sequence-classification checkpoint with one output, read by transformers."""
    root = Path(folder)
    loaded: list[Any] = []

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not loaded:
            tokenizer = AutoTokenizer.from_pretrained(root)
            model = AutoModelForSequenceClassification.from_pretrained(root).eval()
            if model.config.num_labels != 1:
                raise InputError(
                    f"it has {model.config.num_labels} outputs", where=str(root), fix="a reward has one"
                )
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model.config.pad_token_id = tokenizer.pad_token_id
            loaded.extend((tokenizer, model))
        tokenizer, model = loaded
        texts, found = [p + r for p, r in zip(prompts, responses, strict=True)], []
        for start in range(0, len(texts), batch):
            inputs = tokenizer(
                texts[start : start + batch], return_tensors="pt", padding=True, truncation=True
            )
            with torch.no_grad():
                found += model(**inputs).logits[:, 0].float().tolist()
        return found

    weights = [files.sha256_file(path) for path in sorted(root.glob("*.safetensors"))]
    return Scorer(score, root.name, files.sha256_json(weights))


def implicit_reward(policy: Path | str, reference: Path | str, *, beta: float) -> Scorer:
    """The reward that a DPO policy implies: beta times the log-ratio of policy and reference."""
    subjects: list[Any] = []

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        from glasshouse.subjects import as_subject

        if not subjects:
            subjects.extend(as_subject(Path(folder)) for folder in (policy, reference))
        ours, theirs = (log_likelihoods(one, prompts, responses) for one in subjects)
        return [beta * (a - b) for a, b in zip(ours, theirs, strict=True)]

    held = [files.sha256_file(p) for f in (policy, reference) for p in sorted(Path(f).glob("*.safetensors"))]
    return Scorer(score, f"implicit reward of {Path(policy).name}", files.sha256_json([held, beta]))


def log_likelihoods(subject: Any, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Log-probability of each response after its prompt, in nats."""
    return [float(x) for x in subject.score(list(prompts), list(responses))]


def measure_reward(scorer: Scorer, held_out: Sequence[Rating], *, seed: int = 0) -> RewardReport:
    """Accuracy (Wilson), expected calibration error and length correlation on held-out preferences.

    Ties are left out; an equal reward for both counts as wrong. Raises InputError without any rating, or
    for a reward that is not finite.
    """
    import numpy as np

    from glasshouse.statistics import bootstrap, spearman, wilson

    kept = [one for one in held_out if not one.tie]
    if not kept:
        raise InputError(
            "no held-out preference is left", where="measure_reward", fix="give rows without ties"
        )
    prompts = [one.prompt for one in kept]
    chosen = np.asarray(scorer.score(prompts, [one.chosen for one in kept]), dtype=float)
    rejected = np.asarray(scorer.score(prompts, [one.rejected for one in kept]), dtype=float)
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        raise InputError(f"the reward model {scorer.name} gives rewards that are not finite")
    gaps = chosen - rejected
    lengths = [len(one.chosen) for one in kept] + [len(one.rejected) for one in kept]
    rewards = np.concatenate([chosen, rejected])
    return RewardReport(
        wilson(int((gaps > 0).sum()), len(gaps)),
        bootstrap(gaps, calibration_error, resamples=500, seed=seed),
        spearman(rewards, lengths),
    )


def calibration_error(gaps: Any) -> float:
    """Expected calibration error of P(chosen) = sigmoid(gap), over ten bins of confidence in [1/2, 1]."""
    import numpy as np

    gaps = np.asarray(gaps, dtype=float)
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    correct = (gaps > 0).astype(float)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    sums = [np.bincount(place, weights=x, minlength=BINS) for x in (confidence, correct)]
    return float(np.abs(sums[0] - sums[1]).sum() / len(gaps))


def best_of_n_curve(proxy: Any, gold: Any, *, sizes: Sequence[int] | None = None) -> list[dict[str, float]]:
    """Over-optimisation by best-of-n: KL = ln n - (n - 1)/n, mean proxy and gold reward of the best by proxy.

    `proxy`, `gold` [prompts, samples] are rewards of the same samples. Each point averages over all
    subsets of n samples exactly (by the rank of each sample), without noise of drawing. Raises
    InputError for shapes that differ or fewer than two samples.
    """
    import numpy as np

    p, g = np.asarray(proxy, dtype=float), np.asarray(gold, dtype=float)
    if p.ndim != 2 or p.shape != g.shape or p.shape[1] < 2:
        raise InputError(
            f"proxy has shape {p.shape} and gold {g.shape}", fix="give [prompts, samples >= 2] twice"
        )
    samples = p.shape[1]
    order = np.argsort(p, axis=1, kind="stable")
    ranked = [np.take_along_axis(x, order, axis=1).mean(0) for x in (p, g)]  # by rank, ascending
    points = []
    for n in sizes or [2**k for k in range(int(math.log2(samples)) + 1)]:
        if not 1 <= n <= samples:
            raise InputError(f"best of {n} out of {samples} samples", fix="give 1 to the number of samples")
        weights = np.array([math.comb(i, n - 1) for i in range(samples)], dtype=float) / math.comb(samples, n)
        kl = max(math.log(n) - (n - 1) / n, 0.0)
        points.append({"kl": kl, "proxy": float(weights @ ranked[0]), "gold": float(weights @ ranked[1])})
    return points
