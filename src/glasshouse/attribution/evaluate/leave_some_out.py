"""Leave-some-out: remove the rows that score highest for a query, retrain, and see what the query does.

A rank correlation over random subsets (LDS) says little about the few rows a user will look at; this removes
exactly these, beside as many random ones and, where given, the most similar ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.retraining import Retrainings, counts, ranking
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd

RANDOM = "random"


@dataclass(frozen=True)
class LeaveSomeOut:
    """What removing k rows did: `changes[name]` [K, Q], retrained measurement minus that of all rows.

    `names` are the methods and "random"; changes are means over seeds (and draws, for "random"), in the unit
    of the measurement. `predicted[name]` [K, Q] is minus the sum of the removed rows' scores.
    """

    ks: tuple[int, ...]
    query_ids: tuple[str, ...]
    changes: dict[str, NDArray[np.float64]]
    predicted: dict[str, NDArray[np.float64]]
    seeds: int

    @property
    def names(self) -> tuple[str, ...]:
        """Methods, then "random"."""
        return tuple(self.changes)

    def change(self, name: str, k: int, *, seed: int = 0) -> Estimate:
        """Mean change over queries, with a bootstrap over queries."""
        from glasshouse.statistics import bootstrap

        return bootstrap(self._at(name, k), seed=seed)

    def against(self, name: str, k: int, other: str = RANDOM, *, seed: int = 0) -> Estimate:
        """Mean over queries of the change by `name` minus that by `other`; below 0: `name` finds more."""
        from glasshouse.statistics import bootstrap_paired

        return bootstrap_paired(self._at(name, k), self._at(other, k), seed=seed)

    def to_frame(self) -> pd.DataFrame:
        """A long frame: method, k, query, change, predicted (NaN for "random")."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "method": name, "k": k, "query": query, "change": float(self.changes[name][a, q]),
                    "predicted": float(self.predicted[name][a, q]) if name in self.predicted else np.nan,
                }
                for name in self.names
                for a, k in enumerate(self.ks)
                for q, query in enumerate(self.query_ids)
            ]
        )  # fmt: skip

    def plot(self) -> Any:
        """A plotly figure: mean change against k, with 95% bars over queries."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name in self.names:
            points = [self.change(name, k) for k in self.ks]
            figure.add_scatter(
                x=list(self.ks), y=[p.value for p in points], name=name, mode="lines+markers",
                error_y={"type": "data", "symmetric": False, "array": [p.high - p.value for p in points],
                         "arrayminus": [p.value - p.low for p in points]},
            )  # fmt: skip
        return figure.update_layout(xaxis_title="rows removed", yaxis_title="change of the measurement")

    def save(self, folder: Path | str) -> Path:
        """Write `changes.safetensors` and `leave-some-out.json`; returns the folder."""
        from safetensors.numpy import save

        arrays = {f"change/{k}": np.ascontiguousarray(v) for k, v in self.changes.items()}
        arrays |= {f"predicted/{k}": np.ascontiguousarray(v) for k, v in self.predicted.items()}
        files.write_bytes(Path(folder) / "changes.safetensors", save(arrays))
        about = {
            "ks": list(self.ks),
            "query_ids": list(self.query_ids),
            "seeds": self.seeds,
            "names": self.names,
        }
        files.write_json(Path(folder) / "leave-some-out.json", about)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> LeaveSomeOut:
        """What `save` wrote. Raises InputError where there is none."""
        from safetensors.numpy import load_file

        about = read_about(Path(folder) / "leave-some-out.json")
        arrays = load_file(Path(folder) / "changes.safetensors")
        predicted = {k.removeprefix("predicted/"): v for k, v in arrays.items() if k.startswith("predicted/")}
        changes = {name: arrays[f"change/{name}"] for name in about["names"]}
        return cls(tuple(about["ks"]), tuple(about["query_ids"]), changes, predicted, about["seeds"])

    def _at(self, name: str, k: int) -> NDArray[np.float64]:
        if name not in self.changes or k not in self.ks:
            raise InputError(
                f"no removal of {k} rows by {name!r}", fix=f"choose of {self.ks} and {self.names}"
            )
        return self.changes[name][self.ks.index(k)]

    def _repr_html_(self) -> str:
        frame = self.to_frame().groupby(["method", "k"], sort=False)["change"].mean().unstack("k")
        return str(frame.to_html(float_format="%.3g"))


def leave_some_out(
    tables: Mapping[str, ScoreTable],
    retrainings: Retrainings,
    *,
    ks: Sequence[float] = (0.01, 0.02, 0.05, 0.1),
    queries: Sequence[int] | None = None,
    sign: Literal["+", "-"] = "+",
    draws: int = 4,
    seed: int = 0,
) -> LeaveSomeOut:
    """Retrain without each query's k highest (`sign` "+") or lowest rows by every table, and without random.

    `ks` are counts, or shares below 1 of all rows; `queries` the numbers of the queries to evaluate (default:
    all); `draws` random removals of each size, shared by all queries. Models in all:
    seeds x (1 + methods x queries x K + draws x K). Raises InputError for tables that do not cover the rows.
    """
    n, found = retrainings.n, counts(ks, retrainings.n)
    ids, asked = _asked(tables, n, queries)
    base = retrainings.without([]).mean(0)
    changes = {name: np.empty((len(found), len(asked))) for name in tables} | {RANDOM: None}
    predicted = {name: np.empty((len(found), len(asked))) for name in tables}
    for a, k in enumerate(found):
        for name, table in tables.items():
            scores = table.dense(-np.inf if sign == "+" else np.inf).astype(np.float64)
            for b, q in enumerate(asked):
                gone = ranking(scores[q] if sign == "+" else -scores[q])[:k]
                changes[name][a, b] = retrainings.without(gone).mean(0)[q] - base[q]  # type: ignore[index]
                predicted[name][a, b] = -scores[q, gone].sum()
    changes[RANDOM] = np.stack([
        np.mean([retrainings.without(_drawn(n, k, seed, d)).mean(0)[asked] for d in range(draws)], axis=0)
        - base[asked]
        for k in found
    ])  # fmt: skip
    return LeaveSomeOut(tuple(found), tuple(ids[q] for q in asked), changes, predicted, retrainings.seeds)  # type: ignore[arg-type]


def read_about(path: Path) -> dict[str, Any]:
    """A result's JSON. Raises InputError where there is none, or a damaged one."""
    try:
        found: dict[str, Any] = files.read_json(path)
        return found
    except (OSError, ValueError) as error:
        raise InputError(f"it holds no result ({error})", where=str(path)) from error


def _asked(
    tables: Mapping[str, ScoreTable], n: int, queries: Sequence[int] | None
) -> tuple[tuple[str, ...], list[int]]:
    """Names of all queries, and the numbers of those to evaluate."""
    if not tables or RANDOM in tables:
        raise InputError('give tables by name, none of them "random"')
    ids = next(iter(tables.values())).query_ids
    for name, table in tables.items():
        if len(table.train_ids) != n or table.query_ids != ids:
            raise InputError(
                f"the table {name!r} has other queries or not {n} rows", fix="score the same data"
            )
    return ids, list(range(len(ids))) if queries is None else [int(q) for q in queries]


def _drawn(n: int, k: int, seed: int, draw: int) -> list[int]:
    return [int(i) for i in rng(seed, "random removal", k, draw).choice(n, k, replace=False)]
