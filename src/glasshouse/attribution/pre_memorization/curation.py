"""Which training queries to collect more examples of: those the run did not answer before copying them.

Kang et al. 2024, section 6: new examples are drawn near queries whose pre-memorization accuracy is below a
cut-off. The other ways to choose that they compare with are here as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.attribution.pre_memorization import measure
from glasshouse.attribution.pre_memorization.accuracy import pre_memorization
from glasshouse.attribution.pre_memorization.trajectory import Array, Trajectory
from glasshouse.corpora.rows import Record
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

CUTOFF = 0.75
RIGHT = 0.8
"""Accuracy from which a row with low PM counts as copied; below it, it is not even that."""


@dataclass(frozen=True, eq=False)
class CurationPlan:
    """How many new examples to collect near each training query; the quotas sum to `budget`.

    traj: the run. threshold: log(log p) of memorization. cutoff: queries with a PM below it are collected
    near, all alike. groups: a topic per row, for `by_group`. at: the checkpoint that counts, the last one.

    Raises InputError for a budget below 1, a cut-off outside (0, 1], groups that are not one per row, and a
    run in which no row is below the cut-off.
    """

    traj: Trajectory
    cutoff: float = CUTOFF
    budget: int = 100
    threshold: float = -2.3
    groups: Sequence[str] | None = None
    at: int = -1

    def __post_init__(self) -> None:
        if self.budget < 1 or not 0 < self.cutoff <= 1:
            raise InputError(f"budget {self.budget}, cutoff {self.cutoff}", fix="give 1 or more, and (0, 1]")
        if self.groups is not None and len(self.groups) != self.traj.n_rows:
            raise InputError(f"{len(self.groups)} groups for {self.traj.n_rows} rows", fix="give one each")
        if not (self.pm < self.cutoff).any():
            raise InputError(
                f"no row has a pre-memorization accuracy below {self.cutoff}",
                where=self.traj.name, fix="raise the cut-off, or collect i.i.d.: nothing stands out",
            )  # fmt: skip

    @property
    def pm(self) -> Array:
        """PM of the trained rows at the checkpoint, float64 [n]."""
        return np.asarray(pre_memorization(self.traj, self.threshold)[self.at, self.traj.trained])

    @property
    def quotas(self) -> Array:
        """New examples to collect near each trained row, int64 [n], most where PM is lowest."""
        pm = self.pm
        wanted = np.flatnonzero(pm < self.cutoff)
        each, rest = divmod(self.budget, len(wanted))
        out = np.zeros(len(pm), np.int64)
        out[wanted] = each
        out[wanted[np.argsort(pm[wanted], kind="stable")[:rest]]] += 1
        return out

    def to_frame(self) -> pd.DataFrame:
        """One line per trained row, lowest PM first: row, pm, accuracy, kind, collect, and group if given.

        kind: "learned" (PM at or above the cut-off), "copied" (right, but not before) or "not learned".
        """
        import pandas as pd

        trained, pm = self.traj.trained, self.pm
        now = self.traj.accuracy[self.at, trained]
        kind = np.where(pm >= self.cutoff, "learned", np.where(now >= RIGHT, "copied", "not learned"))
        columns: dict[str, Any] = {
            "row": [self.traj.row_ids[i] for i in trained], "pm": pm, "accuracy": now, "kind": kind,
            "collect": self.quotas,
        }  # fmt: skip
        if self.groups is not None:
            columns["group"] = [str(self.groups[i]) for i in trained]
        return pd.DataFrame(columns).sort_values(["pm", "accuracy"], kind="stable", ignore_index=True)

    def by_group(self) -> pd.DataFrame:
        """One line per group, most to collect first: rows, mean pm, collect. Raises InputError without."""
        if self.groups is None:
            raise InputError("the plan has no groups", fix="give groups=[...], one per row")
        table = self.to_frame().groupby("group", sort=True)
        found = table.agg(rows=("row", "size"), pm=("pm", "mean"), collect=("collect", "sum")).reset_index()
        return found.sort_values("collect", ascending=False, kind="stable", ignore_index=True)

    def plot(self) -> Any:
        """How many rows have which PM, the cut-off marked (plotly)."""
        import plotly.graph_objects as go

        figure = go.Figure([go.Histogram(x=self.pm, xbins={"start": 0, "end": 1.01, "size": 0.1})])
        figure.add_vline(x=self.cutoff)
        figure.update_layout(
            title="Accuracy of training rows before they were copied",
            xaxis_title="pre-memorization accuracy", yaxis_title="rows",
        )  # fmt: skip
        return figure

    def save(self, path: Path | str) -> Path:
        """Write `to_frame` as Parquet."""
        with files.atomic_path(path) as temporary:
            self.to_frame().to_parquet(temporary, index=False)
        return Path(path)


# -- other ways to choose ------------------------------------------------------------------------------------


def solution_lengths(rows: Sequence[Record]) -> Array:
    """Words of each reference solution, int64 [N]: the plainest measure of difficulty."""
    return np.array([len(measure.reference(row).split()) for row in rows], np.int64)


def instruction_difficulty(subject: Any, rows: Sequence[Record]) -> Array:
    """IFD (Li et al. 2023): perplexity of the solution with its prompt over that without, float64 [N].

    Near 1 the prompt does not help. Without the prompt the solution follows the prompt's first token alone
    (a `<bos>`, where there is one).
    """
    pairs = measure.solution_pairs(subject, rows)
    given = measure.solution_logppl(subject, rows).astype(float)
    bare = subject.score([p[:1] for p, _ in pairs], [s for _, s in pairs], per_token=True)
    alone = np.array([-float(part.double().mean()) for part in bare])
    return np.exp(given - alone)


def data_efficiency(reference: Mapping[int, float], curated: Mapping[int, float]) -> tuple[float, int | None]:
    """How little curated data reaches what i.i.d. data reach at the end: (share of it, examples or None).

    Both map the number of added examples to test accuracy. The share is that of the smallest curated amount
    whose accuracy is at least the last i.i.d. one, linearly interpolated between amounts; infinity and None
    where it is never reached.
    """
    if len(reference) < 2 or len(curated) < 2:
        raise InputError("a curve has one point", fix="give accuracies at two amounts or more")
    end = max(reference)
    goal = reference[end]
    amounts = sorted(curated)
    before: int | None = None
    for amount in amounts:
        if curated[amount] >= goal:
            if before is None or curated[amount] == curated[before]:
                return amount / end, amount
            part = (goal - curated[before]) / (curated[amount] - curated[before])
            return (before + part * (amount - before)) / end, amount
        before = amount
    return math.inf, None
