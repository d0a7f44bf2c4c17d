"""Is a right answer one that was understood? Perturb the beginning of the solution and look what is left.

Kang et al. 2024, section 5: rows with high pre-memorization accuracy keep their answers when the solution has
to begin with words of ours ("First"); rows that were only copied lose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.pre_memorization import measure
from glasshouse.attribution.pre_memorization.answers import Matcher, answers_match
from glasshouse.attribution.pre_memorization.trajectory import Array
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import derive, rng
from glasshouse.statistics import Estimate, permutation_p_value

if TYPE_CHECKING:
    import pandas as pd

PREFIXES = ("First", "We know that")
"""The authors' prefixes."""
LOW, HIGH = 0.3, 0.8
"""PM below which a right row counts as copied, and above which as learned."""
RESAMPLES, PERMUTATIONS = 2000, 9999


@dataclass(frozen=True, eq=False)
class Robustness:
    """Accuracy of copied and of learned rows, asked plainly and behind each prefix.

    rows: ids, N of them. copied [N]: bool, PM below `LOW` (the others are above `HIGH`). plain [N], prefixed
    [P, N]: share of right samples. `difference`: drop of the copied rows minus drop of the learned ones, mean
    over prefixes, with a bootstrap interval over rows of both groups; `p_value`: one-sided, labels permuted.
    """

    rows: tuple[str, ...]
    prefixes: tuple[str, ...]
    copied: Array
    plain: Array
    prefixed: Array
    difference: Estimate
    p_value: float

    @property
    def drop(self) -> Array:
        """Plain minus prefixed accuracy of each row, mean over prefixes, float64 [N]."""
        return np.asarray(self.plain - self.prefixed.mean(0))

    def to_frame(self) -> pd.DataFrame:
        """One line per row: row, copied, plain, then a column per prefix."""
        import pandas as pd

        columns: dict[str, Any] = {"row": self.rows, "copied": self.copied, "plain": self.plain}
        return pd.DataFrame(columns | dict(zip(self.prefixes, self.prefixed, strict=True)))

    def plot(self) -> Any:
        """Mean accuracy of both groups, plain and behind each prefix (plotly)."""
        import plotly.graph_objects as go

        names = ["plain", *self.prefixes]
        values = np.vstack([self.plain, self.prefixed])
        groups = {"copied": self.copied, "learned": ~self.copied}
        figure = go.Figure(
            [go.Bar(name=name, x=names, y=values[:, mask].mean(1)) for name, mask in groups.items()]
        )
        figure.update_layout(
            title="Right answers when the solution begins otherwise", xaxis_title="begins with",
            yaxis_title="accuracy", barmode="group",
        )  # fmt: skip
        return figure


def robustness(
    subject: Any,
    rows: Sequence[Record],
    pm: Any,
    *,
    prefixes: Sequence[str] = PREFIXES,
    low: float = LOW,
    high: float = HIGH,
    k: int = 10,
    temperature: float = 0.8,
    top_p: float = 0.95,
    max_new_tokens: int = 512,
    stop: str | None = None,
    matcher: Matcher = answers_match,
    fewest: int = 5,
    seed: int = 0,
) -> Robustness:
    """Fresh samples of rows with pre-memorization accuracy `pm` [N], plainly and behind each prefix.

    Give rows that the subject answers rightly; those with a PM between `low` and `high` are left out. The
    plain accuracy is drawn anew for both groups, so that rows chosen for lucky samples fall alike. Raises
    InputError where a group has fewer than `fewest` rows.
    """
    values = np.asarray(pm, float)
    if values.shape != (len(rows),) or not np.isfinite(values).all():
        raise InputError(f"pm has shape {values.shape} for {len(rows)} rows", fix="give one PM per row")
    if not prefixes or not all(prefix.strip() for prefix in prefixes):
        raise InputError("a prefix is empty", fix="give words to begin the solution with")
    kept = np.flatnonzero((values < low) | (values > high))
    copied = values[kept] < low
    for name, count in (("copied", int(copied.sum())), ("learned", int((~copied).sum()))):
        if count < fewest:
            raise InputError(
                f"only {count} {name} rows can be compared, of at least {fewest}",
                fix="give more rows, or a run with earlier checkpoints",
            )
    some = [rows[i] for i in kept]

    def accuracy(prefix: str, stream: str) -> Array:
        said = measure.sample(
            subject, some, k=k, temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens,
            stop=stop, prefix=prefix, seed=derive(seed, "robustness", stream),
        )  # fmt: skip
        return measure.judge(said, some, matcher)[0] / k

    plain = accuracy("", "plain")
    prefixed = np.stack([accuracy(prefix, prefix) for prefix in prefixes])
    drop = plain - prefixed.mean(0)
    difference, p = two_means(drop[copied], drop[~copied], seed=seed)
    return Robustness(tuple(r.id for r in some), tuple(prefixes), copied, plain, prefixed, difference, p)


def two_means(a: Array, b: Array, *, seed: int = 0) -> tuple[Estimate, float]:
    """mean(a) - mean(b) of two groups: bootstrap within each, and a one-sided permutation p-value."""
    generator = rng(seed, "two means")
    draws = a[generator.integers(len(a), size=(RESAMPLES, len(a)))].mean(1) - b[
        generator.integers(len(b), size=(RESAMPLES, len(b)))
    ].mean(1)
    value = float(a.mean() - b.mean())
    low, high = (float(q) for q in np.quantile(draws, (0.025, 0.975)))
    pooled = np.concatenate([a, b])
    mixed = generator.permuted(np.tile(pooled, (PERMUTATIONS, 1)), axis=1)
    null = mixed[:, : len(a)].mean(1) - mixed[:, len(a) :].mean(1)
    found = Estimate(
        value, min(low, value), max(high, value), 0.95, len(pooled),
        f"percentile bootstrap over rows of both groups, {RESAMPLES} resamples",
    )  # fmt: skip
    return found, permutation_p_value(value, null + 1e-12)  # a tie is as extreme
