"""A linear probe as annotator: accurate, and not bound to its words; so its faithfulness is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._base import AnnotatorBase, Cells, Records
from glasshouse.annotators._checks import check_predicates, check_texts
from glasshouse.annotators._types import Annotator, Capability, Direction, Kind, Predicate
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.text import shorten
from glasshouse.statistics.estimate import Estimate

Floats = NDArray[np.float64]


class Embeds(Protocol):
    """Anything that turns texts into vectors, such as `Encoder`."""

    @property
    def name(self) -> str:
        """Stable name."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Float32 [n, d]."""


class ProbeAnnotator(AnnotatorBase):
    """Logistic probes on `encoder`'s vectors, one per predicate, fitted to targets in [0, 1].

    `ridge` is the weight of the squared norm (not of the bias), per text. A predicate whose payload is a
    Direction needs no fit. Report `faithfulness` beside its ratings: a probe may rate well by something its
    words do not say.
    """

    kind: ClassVar[Kind] = "probe"
    capabilities: frozenset[Capability] = frozenset({"rate", "assign"})

    def __init__(self, encoder: Embeds, *, ridge: float = 1e-3) -> None:
        super().__init__()
        if not ridge > 0:
            raise InputError(
                f"ridge is {ridge}", fix="give a positive number: separable data has no other optimum"
            )
        self.encoder, self.ridge = encoder, ridge
        self.probes_: dict[str, Direction] = {}

    @property
    def id(self) -> str:
        """'probe:<encoder>@hash of the probes'."""
        held = {text: [p.vector.tolist(), p.bias] for text, p in sorted(self.probes_.items())}
        return f"probe:{self.encoder.name}@{files.sha256_json(held)[:8]}"

    def fit(
        self, predicates: Sequence[Predicate | str], texts: Sequence[str], targets: Any
    ) -> ProbeAnnotator:
        """Learn one probe per column of `targets` [n, k] in [0, 1]. Returns self."""
        asked, given = check_predicates(predicates), check_texts(texts)
        y = np.asarray(targets, dtype=np.float64)
        if y.shape != (len(given), len(asked)):
            raise InputError(f"targets of shape {y.shape}", fix=f"give [{len(given)}, {len(asked)}]")
        if not ((y >= 0) & (y <= 1)).all():
            raise InputError("targets outside [0, 1] or NaN", fix="leave unlabelled texts out")
        x = np.asarray(self.encoder.embed(given), dtype=np.float64)
        for column, predicate in enumerate(asked):
            weights = logistic(x, y[:, column], self.ridge)
            self.probes_[predicate.text] = Direction(weights[:-1].astype(np.float32), float(weights[-1]))
        return self

    def faithfulness(
        self, words: Annotator, predicates: Sequence[Predicate | str], texts: Sequence[str]
    ) -> list[Estimate]:
        """F1 per predicate between what the probe holds and what its words alone mean to `words`.

        Texts that `words` could not judge are left out. Bootstrap over texts.
        """
        asked = check_predicates(predicates)
        mine = self.rate(asked, texts).binarize()
        theirs = words.rate([predicate.text for predicate in asked], texts)
        return [
            _f1(mine[known, column], theirs.value[known, column] > 0.5)
            for column in range(len(asked))
            for known in [~np.isnan(theirs.value[:, column])]
        ]

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        probes = [self._probe(predicate) for predicate in predicates]
        x = np.asarray(self.encoder.embed(texts), dtype=np.float64)
        logits = x @ np.stack([p.vector for p in probes]).T + np.array([p.bias for p in probes])
        return Cells((1 / (1 + np.exp(-np.clip(logits, -60, 60)))).astype(np.float32))

    def _probe(self, predicate: Predicate) -> Direction:
        if isinstance(predicate.payload, Direction):
            return predicate.payload
        if predicate.text not in self.probes_:
            raise InputError(f"no probe was fitted for {shorten(predicate.text)!r}", fix="call fit first")
        return self.probes_[predicate.text]


def logistic(x: Floats, y: Floats, ridge: float, steps: int = 50) -> Floats:
    """Weights [d + 1] (the bias last) of logistic regression on targets in [0, 1], by Newton's method.

    Minimises mean cross-entropy + ridge/2 |w|^2. The steps are halved until the loss falls.
    """
    n, d = x.shape
    wide = np.hstack([x, np.ones((n, 1))])
    penalty = np.full(d + 1, ridge)
    penalty[-1] = 1e-9

    def loss(w: Floats) -> float:
        z = wide @ w
        return float((np.logaddexp(0, z) - y * z).mean() + (penalty * w * w).sum() / 2)

    w = np.zeros(d + 1)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(wide @ w, -60, 60)))
        gradient = wide.T @ (p - y) / n + penalty * w
        if np.abs(gradient).max() < 1e-9:
            break
        hessian = (wide * (p * (1 - p) / n)[:, None]).T @ wide + np.diag(penalty)
        step, size, before = np.linalg.solve(hessian, gradient), 1.0, loss(w)
        while loss(w - size * step) > before and size > 1e-8:
            size /= 2
        w = w - size * step
    return w


def _f1(a: NDArray[Any], b: NDArray[Any]) -> Estimate:
    """F1 of two yes-no columns with an interval over redrawn items; undefined where nobody says yes."""
    from glasshouse.runtime.seeds import rng

    n = len(a)
    kinds = np.array([np.sum((a == 1) & b), np.sum((a == 1) != b), n])
    if n == 0 or 2 * kinds[0] + kinds[1] == 0:
        return Estimate.undefined("nothing holds", n)
    both, one = kinds[0] / n, kinds[1] / n
    drawn = rng(0, "f1").multinomial(n, [both, one, max(0.0, 1 - both - one)], size=2000)
    bottom = 2 * drawn[:, 0] + drawn[:, 1]
    values = 2 * drawn[bottom > 0, 0] / bottom[bottom > 0]
    low, high = (float(q) for q in np.quantile(values, [0.025, 0.975]))
    value = float(2 * kinds[0] / (2 * kinds[0] + kinds[1]))
    return Estimate(value, low, high, 0.95, n, "F1, percentile bootstrap over texts, 2000 resamples")
