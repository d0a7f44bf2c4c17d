"""Counterfactual brittleness: how few rows must go before a right prediction turns wrong?

For each query that the full model gets right, the smallest k of a grid for which training without the k
highest-scoring rows flips it, by majority over seeds (Ilyas et al. 2022, arXiv:2202.00622, section 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.leave_some_out import _asked, read_about
from glasshouse.attribution.evaluate.retraining import Retrainings, counts, ranking
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

SAME_CLASS = "random, same class"


@dataclass(frozen=True)
class Brittleness:
    """`smallest[name]` [Q'] int: rows that had to go before the query flipped, 0 where no k did it.

    `ks` is the grid; `query_ids` are the queries that the model trained on all rows gets right.
    """

    ks: tuple[int, ...]
    query_ids: tuple[str, ...]
    smallest: dict[str, NDArray[np.int64]]
    seeds: int

    @property
    def names(self) -> tuple[str, ...]:
        """Methods, then the baseline where labels were given."""
        return tuple(self.smallest)

    def flipped(self, name: str, k: int) -> NDArray[np.bool_]:
        """Which queries had flipped when at most k rows were gone, `[Q']`."""
        if name not in self.smallest:
            raise InputError(f"nothing was removed by {name!r}", fix=f"choose from {', '.join(self.names)}")
        found = self.smallest[name]
        return (found > 0) & (found <= k)

    def fraction(self, name: str, k: int) -> Estimate:
        """Share of queries flipped by at most k rows (Wilson interval over queries)."""
        from glasshouse.statistics import wilson

        hits = self.flipped(name, k)
        return wilson(int(hits.sum()), len(hits))

    def against(self, name: str, other: str, k: int, *, seed: int = 0) -> Estimate:
        """Share flipped by `name` minus share flipped by `other`, bootstrap over queries."""
        from glasshouse.statistics import bootstrap_paired

        return bootstrap_paired(
            self.flipped(name, k).astype(float), self.flipped(other, k).astype(float), seed=seed
        )

    def to_frame(self) -> pd.DataFrame:
        """A long frame: method, query, smallest k (missing where the query never flipped)."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"method": name, "query": query, "k": float(k) if k else np.nan}
                for name, found in self.smallest.items()
                for query, k in zip(self.query_ids, found, strict=True)
            ]
        )  # fmt: skip

    def plot(self) -> Any:
        """A plotly figure: share of queries flipped against rows removed."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name in self.names:
            shares = [self.fraction(name, k).value for k in self.ks]
            figure.add_scatter(x=list(self.ks), y=shares, name=name, mode="lines+markers", line_shape="hv")
        return figure.update_layout(xaxis_title="rows removed", yaxis_title="share of queries flipped")

    def save(self, folder: Path | str) -> Path:
        """Write `brittleness.json`; returns the folder."""
        smallest = {name: found.tolist() for name, found in self.smallest.items()}
        about = {"ks": list(self.ks), "query_ids": list(self.query_ids), "smallest": smallest,
                 "names": list(self.names), "seeds": self.seeds}  # fmt: skip
        files.write_json(Path(folder) / "brittleness.json", about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> Brittleness:
        """What `save` wrote. Raises InputError where there is none."""
        about = read_about(Path(folder) / "brittleness.json")
        smallest = {name: np.array(about["smallest"][name], dtype=np.int64) for name in about["names"]}
        return cls(tuple(about["ks"]), tuple(about["query_ids"]), smallest, about["seeds"])

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = {name: [str(self.fraction(name, k)) for k in self.ks] for name in self.names}
        return str(
            pd.DataFrame.from_dict(rows, orient="index", columns=[f"k={k}" for k in self.ks]).to_html()
        )


def brittleness(
    tables: Mapping[str, ScoreTable],
    retrainings: Retrainings,
    *,
    ks: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    queries: Sequence[int] | None = None,
    row_classes: Sequence[int] | NDArray[Any] | None = None,
    query_classes: Sequence[int] | NDArray[Any] | None = None,
    seed: int = 0,
) -> Brittleness:
    """Remove the highest-scoring rows of each correctly answered query, k after k, until it flips.

    The measurement of `retrainings` must be positive exactly where the query is answered correctly (the
    label's logit minus the largest other one); a majority of seeds decides. `row_classes` and `query_classes`
    add the baseline "random, same class", an own draw per query, nested in k. Raises InputError when the
    model trained on all rows gets no query right.
    """
    found = counts(ks, retrainings.n)
    ids, asked = _asked(tables, retrainings.n, queries)
    right = [q for q in asked if not _wrong(retrainings, [], q)]
    if not right:
        raise InputError("the full model gets no query right", fix="ask others, or train it better")
    orders = {name: [ranking(table.dense(-np.inf)[q]) for q in right] for name, table in tables.items()}
    if row_classes is not None and query_classes is not None:
        orders[SAME_CLASS] = [_same_class(row_classes, query_classes, q, seed) for q in right]
    smallest = {
        name: np.array([_flip(retrainings, order, found, q) for order, q in zip(of, right, strict=True)])
        for name, of in orders.items()
    }
    return Brittleness(tuple(found), tuple(ids[q] for q in right), smallest, retrainings.seeds)


def _flip(retrainings: Retrainings, order: list[int], ks: list[int], q: int) -> int:
    """The first k that flips query q, 0 if none does; a class that runs out of rows flips no further."""
    for k in ks:
        if len(order) < k:
            return 0
        if _wrong(retrainings, order[:k], q):
            return k
    return 0


def _wrong(retrainings: Retrainings, gone: list[int], q: int) -> bool:
    f = retrainings.without(gone)[:, q]
    return bool((f < 0).mean() > 0.5)


def _same_class(rows: Any, asked: Any, q: int, seed: int) -> list[int]:
    """The rows of the query's class in a random order, its own for each query."""
    members = np.flatnonzero(np.asarray(rows) == np.asarray(asked)[q])
    return [int(i) for i in rng(seed, "same class", q).permutation(members)]
