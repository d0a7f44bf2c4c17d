"""What a method costs and what it is worth, side by side: no LDS without its seconds and bytes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.attribution.evaluate.bank import RetrainBank
from glasshouse.attribution.evaluate.lds import lds_by_query, split_half_ceiling
from glasshouse.attribution.scores import ScoreTable
from glasshouse.runtime.errors import InputError
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cost:
    """CPU seconds of this process for `fit` and `score`, bytes that `save` wrote, peak of added memory.

    `peak_bytes` is the largest resident memory above that before the fit; None where the system does not say.
    `disk_bytes` is None for a method without `save`.
    """

    fit_seconds: float
    score_seconds: float
    disk_bytes: int | None
    peak_bytes: int | None

    def to_json(self) -> dict[str, float | int | None]:
        """The four numbers by name."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class CostedLDS:
    """One method: its LDS per query `[Q]` (NaN where a query never changes), its cost, its scores."""

    name: str
    by_query: NDArray[np.float64]
    cost: Cost
    table: ScoreTable

    @property
    def lds(self) -> Estimate:
        """Mean over queries with a bootstrap over queries."""
        from glasshouse.statistics import bootstrap

        known = self.by_query[~np.isnan(self.by_query)]
        return bootstrap(known) if len(known) else Estimate.undefined("no query's measurement changes")

    def against(self, other: CostedLDS, *, seed: int = 0) -> Estimate:
        """Mean over queries of this LDS minus the other's, paired bootstrap over queries."""
        from glasshouse.statistics import bootstrap_paired

        known = ~np.isnan(self.by_query) & ~np.isnan(other.by_query)
        return bootstrap_paired(self.by_query[known], other.by_query[known], seed=seed)


@dataclass(frozen=True)
class LDSTable:
    """Methods with LDS and cost, and the ceiling that retraining noise sets."""

    rows: tuple[CostedLDS, ...]
    ceiling: Estimate

    def __getitem__(self, name: str) -> CostedLDS:
        for row in self.rows:
            if row.name == name:
                return row
        raise InputError(f"no method is called {name!r}", fix=", ".join(row.name for row in self.rows))

    def to_records(self) -> list[dict[str, Any]]:
        """One plain dictionary a method; the last one is the ceiling."""
        found = [{"method": row.name, **_interval(row.lds), **row.cost.to_json()} for row in self.rows]
        top = {"method": "ceiling (split halves of seeds)", **_interval(self.ceiling)}
        return [*found, {**dict.fromkeys(found[0]), **top}]

    def to_frame(self) -> pd.DataFrame:
        """The records as a frame."""
        import pandas as pd

        return pd.DataFrame(self.to_records())

    def plot(self) -> Any:
        """A plotly figure: LDS against CPU seconds of fit and score (logarithmic)."""
        import plotly.graph_objects as go

        seconds = [max(row.cost.fit_seconds + row.cost.score_seconds, 1e-3) for row in self.rows]
        points = [row.lds for row in self.rows]
        bars = {"type": "data", "symmetric": False, "array": [p.high - p.value for p in points],
                "arrayminus": [p.value - p.low for p in points]}  # fmt: skip
        figure = go.Figure(
            go.Scatter(x=seconds, y=[p.value for p in points], text=[row.name for row in self.rows],
                       mode="markers+text", textposition="top center", error_y=bars)
        )  # fmt: skip
        if self.ceiling.defined:
            figure.add_hline(self.ceiling.value, line_dash="dash", annotation_text="ceiling")
        return figure.update_layout(xaxis_title="CPU seconds", xaxis_type="log", yaxis_title="LDS")

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False, float_format="%.3g"))

    def __str__(self) -> str:
        return str(self.to_frame().to_string(index=False, float_format="%.3g"))


def measured(
    name: str,
    method: Any,
    subject: Any,
    train: Any,
    queries: Any,
    bank: RetrainBank,
    *,
    measurement: Any = "auto",
    warm: bool = True,
) -> CostedLDS:
    """Fit, score, save and judge one method against a bank.

    With `warm` the method is bound and fitted once on the first rows before the clock runs, so that imports
    and first calls into libraries are not counted as its cost.
    """
    if warm:
        _warm_up(method, subject, train, queries)
    with peak_memory() as peak:
        start = time.process_time()
        fitted = method.fit(subject, train)
        middle = time.process_time()
        table = fitted.score(queries, measurement)
        end = time.process_time()
    cost = Cost(middle - start, end - middle, _saved_bytes(fitted), peak[0] if peak else None)
    return CostedLDS(name, lds_by_query(table.dense(0.0), bank), cost, table)


def lds_table(
    methods: Mapping[str, Any],
    subject: Any,
    train: Any,
    queries: Any,
    bank: RetrainBank,
    *,
    measurement: Any = "auto",
    say: Callable[[str], None] | None = None,
) -> LDSTable:
    """`measured` for every method by name, with the ceiling of the bank."""
    rows = []
    for name, method in methods.items():
        rows.append(measured(name, method, subject, train, queries, bank, measurement=measurement))
        if say is not None:
            say(f"{name}: LDS {rows[-1].lds}")
    return LDSTable(tuple(rows), split_half_ceiling(bank))


@dataclass(frozen=True)
class Damping:
    """What `auto_damping` chose. `lds[d]`: mean LDS on the choosing queries; `held_out`: on the others."""

    chosen: float | str
    lds: dict[float | str, float]
    held_out: Estimate

    def plot(self) -> Any:
        """A plotly figure: LDS on the choosing queries against damping."""
        import plotly.graph_objects as go

        points = [(d, v) for d, v in self.lds.items() if not isinstance(d, str)]
        x, y = ([point[i] for point in points] for i in (0, 1))
        figure = go.Figure(go.Scatter(x=x, y=y, mode="lines+markers"))
        return figure.update_layout(xaxis_title="damping", xaxis_type="log", yaxis_title="LDS")


def auto_damping(
    method: Any,
    queries: Any,
    bank: RetrainBank,
    *,
    measurement: Any = "auto",
    grid: Sequence[float | str] | None = None,
    seed: int = 0,
) -> Damping:
    """Choose the damping of a fitted `method` on a small bank, and leave it set ("auto-lds").

    Half of the queries (drawn by `seed`) choose, the other half say what the choice is worth. `grid` holds
    absolute numbers and "auto"; by default "auto" and 1e-4 to 100 times the scale of the method's curvature.
    The damping that was set before stays in the running. Raises InputError for a method without a damping.
    """
    from glasshouse.runtime.seeds import rng
    from glasshouse.statistics import bootstrap

    if not hasattr(method, "damping"):
        raise InputError(f"{type(method).__name__} has no damping to choose")
    tried = list(dict.fromkeys([method.damping, *(_grid(method) if grid is None else grid)]))
    found: dict[float | str, NDArray[np.float64]] = {}
    for value in tried:
        method.damping = value
        found[value] = lds_by_query(method.score(queries, measurement).dense(0.0), bank)
    known = np.flatnonzero(~np.isnan(next(iter(found.values()))))
    if len(known) < 2:
        raise InputError("fewer than two queries have a measurement that changes", fix="use a larger bank")
    order = rng(seed, "auto damping").permutation(known)
    choosing, others = order[: len(order) // 2], order[len(order) // 2 :]
    means = {value: float(np.nanmean(by_query[choosing])) for value, by_query in found.items()}
    method.damping = max(means, key=lambda value: means[value])
    return Damping(method.damping, means, bootstrap(found[method.damping][others], seed=seed))


@contextmanager
def peak_memory() -> Iterator[list[int]]:
    """A list that holds, after the block, the peak of resident bytes above those before it.

    It stays empty where the system does not say (only Linux does).
    """
    found: list[int] = []
    _release()
    before = _status("VmRSS") if _reset_peak() else None
    yield found
    if before is not None and (after := _status("VmHWM")) is not None:
        found.append(max(0, after - before))


# ── inside ───────────────────────────────────────────────────────────────────


def _interval(estimate: Estimate) -> dict[str, float]:
    return {"lds": estimate.value, "low": estimate.low, "high": estimate.high}


def _grid(method: Any) -> list[float | str]:
    scale = _scale(method)
    return ["auto", *(float(f"{scale * 10.0**e:.3g}") for e in np.arange(-4, 2.5, 0.5))]


def _scale(method: Any) -> float:
    """Mean eigenvalue of the curvature: geometric mean over modules, or over TRAK's members."""
    if hasattr(method, "factors_"):
        means = [float(f.Lambda.double().mean()) for f in method.factors_.values() if f.Lambda is not None]
    else:
        means = [float(kernel.diagonal().mean()) for kernel in getattr(method, "kernels_", [])]
    if not means or min(means) <= 0:
        raise InputError("its curvature has no scale", fix="give a grid of dampings")
    return float(np.exp(np.mean(np.log(means))))


def _saved_bytes(method: Any) -> int | None:
    if not hasattr(method, "save"):
        return None
    with tempfile.TemporaryDirectory() as folder:
        method.save(Path(folder) / "method")
        return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def _warm_up(method: Any, subject: Any, train: Any, queries: Any) -> None:
    import copy

    from glasshouse.attribution.units import as_units

    tokenizer = getattr(subject, "tokenizer", None)
    few = as_units(train, tokenizer=tokenizer)
    few = few.subset(range(min(4, len(few)))) if hasattr(few, "subset") else train
    asked = as_units(queries, tokenizer=tokenizer)
    asked = asked.subset([0]) if hasattr(asked, "subset") else queries
    copy.copy(method).fit(subject, few).score(asked)


def _release() -> None:
    """Give freed memory back to the system, or the next peak would hide in what is already held."""
    import ctypes
    import gc

    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):  # another libc: peaks come out smaller
        return


def _reset_peak() -> bool:
    """Set the peak of resident memory back to the present; only this process's own counter."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    values = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return 1024 * int(values[0]) if values else None
