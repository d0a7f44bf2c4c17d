"""`SycophancyReport`: the numbers of a set of Inspect logs, with intervals, corrected p-values and power."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import (
    Estimate,
    binomial_p_value,
    bootstrap,
    holm,
    minimum_detectable_effect,
    t_interval,
    wilson,
)

if TYPE_CHECKING:
    import pandas as pd

CONTRASTS = {
    "sycophancy_answer": (
        ("correct", "suggest_incorrect", "neutral"), ("correct", "doubt_correct", "neutral"),
        ("correct", "suggest_correct", "neutral"),
    ),
    "sycophancy_feedback": (("preference", "like", "dislike"), ("preference", "wrote", "did_not_write")),
    "sycophancy_mimicry": (("mimics", "misattributed", "plain"),),
}  # fmt: skip
"""Per task: (key, arm, the arm it is compared with), paired by item."""
SCORERS = {
    "sycophancy_answer": "answers",
    "sycophancy_feedback": "feedback_positivity",
    "sycophancy_mimicry": "mimicry_names",
    "sycophancy_are_you_sure": "challenged",
}
RATIOS = (
    ("apologise rate", "apologised"), ("flip rate", "changed_to_wrong"), ("confidence", "stood"),
)  # fmt: skip
UNREAD = ("unparsed", "refused", "truncated", "mass")


@dataclass(frozen=True)
class Row:
    """One number. `p` tests a contrast against zero, `p_holm` is corrected over the contrasts of the report.

    `detectable` is the smallest difference that as many items would have shown with probability 0.8: read it
    beside every contrast that is near zero. `unparsed`, `refused`, `truncated` are shares of the samples
    asked, `mass` the mean probability of the known replies (1 where replies were sampled).
    """

    model: str
    task: str
    what: str
    arm: str
    estimate: Estimate
    p: float = math.nan
    p_holm: float = math.nan
    detectable: float = math.nan
    asked: int = 0
    unparsed: float = math.nan
    refused: float = math.nan
    truncated: float = math.nan
    mass: float = math.nan


@dataclass(frozen=True)
class SycophancyReport:
    """Rows by model, task and arm; `left_out` counts logs that did not succeed and are not in any number."""

    rows: tuple[Row, ...]
    left_out: int = 0

    def row(self, what: str, arm: str = "", *, model: str | None = None) -> Row:
        """The one row of that name. Raises InputError when there is none or more than one."""
        found = [r for r in self.rows if r.what == what and r.arm == arm and model in (None, r.model)]
        if len(found) != 1:
            names = ", ".join(sorted({f"{r.what} {r.arm}".strip() for r in self.rows}))
            raise InputError(f"{len(found)} rows are called {what!r} {arm!r}", fix=f"there are: {names}")
        return found[0]

    def to_frame(self) -> pd.DataFrame:
        """One row per number, its estimate spread over value, low, high, n and method."""
        import pandas as pd

        frames = []
        for row in self.rows:
            flat = {k: v for k, v in asdict(row).items() if k != "estimate"}
            e = row.estimate
            frames.append(
                {**flat, "value": e.value, "low": e.low, "high": e.high, "n": e.n, "method": e.method}
            )
        return pd.DataFrame(frames)

    def plot(self) -> Any:
        """Every contrast and ratio with its interval (plotly)."""
        import plotly.graph_objects as go

        shown = [row for row in self.rows if row.estimate.defined and not row.what.startswith("mean ")]
        values = [row.estimate for row in shown]
        dots = go.Scatter(
            x=[e.value for e in values], mode="markers", text=[row.model for row in shown],
            y=[f"{r.task.removeprefix('sycophancy_')}: {r.what} {r.arm}" for r in shown],
            error_x={
                "array": [e.high - e.value for e in values], "arrayminus": [e.value - e.low for e in values],
            },
        )  # fmt: skip
        return go.Figure(dots).add_vline(x=0, line_dash="dot")

    def save(self, folder: Path | str) -> Path:
        """Write `report.json` into `folder`."""
        rows = [
            {**{name: _told(value) for name, value in vars(r).items()}, "estimate": r.estimate.to_json()}
            for r in self.rows
        ]
        files.write_json(Path(folder) / "report.json", {"rows": rows, "left_out": self.left_out})
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> SycophancyReport:
        """Read what `save` wrote."""
        found = files.read_json(Path(folder) / "report.json")
        rows = [
            Row(**{name: _read(value) for name, value in row.items() if name != "estimate"},
                estimate=Estimate.from_json(row["estimate"]))
            for row in found["rows"]
        ]  # fmt: skip
        return cls(tuple(rows), found["left_out"])

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{html.escape(r.model)}</td><td>{html.escape(f'{r.what} {r.arm}')}</td>"
            f"<td>{html.escape(str(r.estimate))}</td></tr>"
            for r in self.rows
        )
        return f"<table><tr><th>model</th><th>what</th><th>estimate</th></tr>{cells}</table>"


def analyse(logs: str | Path | Sequence[str | Path]) -> SycophancyReport:
    """The report of all sycophancy logs under a folder (or of the files given).

    Epochs of an item are averaged first: the item is the independent unit. Raises InputError where no log of
    these tasks succeeded.
    """
    from glasshouse.evaluation import scores_df

    frame = scores_df(logs)
    ours = frame[frame.counted & frame.task.isin(SCORERS)]
    if ours.empty:
        raise InputError("no sycophancy evaluation succeeded there", where=str(logs), fix="run one first")
    rows = [
        row
        for (model, task), part in ours.groupby(["model", "task"], sort=False)
        for row in _rows(model, task, part)
    ]
    return SycophancyReport(tuple(_corrected(rows)), len(frame.attrs["left_out"]))


def _rows(model: str, task: str, part: pd.DataFrame) -> Iterator[Row]:
    scorer = SCORERS[task]
    counts = {kind: float(part[f"score_{scorer}_{kind}"].mean()) for kind in UNREAD}
    shared = {"asked": len(part), **counts}
    if task == "sycophancy_are_you_sure":
        yield from _challenge_rows(model, task, part, shared)
        return
    for key in dict.fromkeys(key for key, _, _ in CONTRASTS[task]):
        arms = _by_item(part, f"score_{scorer}_{key}")
        for arm in arms:
            yield Row(model, task, f"mean {key}", arm, _mean(arms[arm].dropna().to_numpy()), **shared)
    for key, arm, against in CONTRASTS[task]:
        arms = _by_item(part, f"score_{scorer}_{key}")
        if arm in arms and against in arms:
            yield _contrast(model, task, f"{key} less {against}", arm, arms[arm], arms[against], shared)


def _challenge_rows(model: str, task: str, part: pd.DataFrame, shared: dict[str, Any]) -> Iterator[Row]:
    columns = {
        name: part.groupby("pair_id")[f"score_challenged_{name}"].mean()
        for name in ("initial_correct", "final_correct", "truthful", *(joint for _, joint in RATIOS))
    }
    for name in ("initial_correct", "final_correct", "truthful"):
        yield Row(model, task, f"mean {name}", "", _mean(columns[name].dropna().to_numpy()), **shared)
    for what, joint in RATIOS:
        found = _ratio(columns[joint].to_numpy(), columns["initial_correct"].to_numpy())
        yield Row(model, task, what, "", found, **shared)
    yield _contrast(
        model,
        task,
        "accuracy after less before",
        "",
        columns["final_correct"],
        columns["initial_correct"],
        shared,
    )


def _by_item(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """Items x arms, epochs averaged over those that could be read."""
    return part.pivot_table(index="pair_id", columns="arm", values=column, aggfunc="mean", dropna=False)


def _mean(values: np.ndarray) -> Estimate:
    """Wilson where every item is a plain yes or no, else t over items."""
    if np.isin(values, (0.0, 1.0)).all() and values.size:
        return wilson(int(values.sum()), values.size)
    return t_interval(values)


def _ratio(joint: np.ndarray, of: np.ndarray) -> Estimate:
    """Sum of `joint` over sum of `of`: Wilson for counts, else a bootstrap over items."""
    known = ~np.isnan(joint) & (of > 0)
    joint, of = joint[known], of[known]
    if not of.size:
        return Estimate.undefined("no first answer was right")
    if np.isin(joint, (0.0, 1.0)).all() and (of == 1).all():
        return wilson(int(joint.sum()), of.size)
    return bootstrap(np.stack([joint, of], 1), lambda x: float(x[:, 0].sum() / x[:, 1].sum()))


def _contrast(
    model: str, task: str, what: str, arm: str, ours: pd.Series, other: pd.Series, shared: dict[str, Any]
) -> Row:
    both = (ours - other).dropna().to_numpy()
    if not both.size:
        return Row(model, task, what, arm, Estimate.undefined("no item was read in both arms"), **shared)
    detectable = (
        minimum_detectable_effect(both.size, sd=float(both.std(ddof=1))) if both.size > 1 else math.inf
    )
    return Row(model, task, what, arm, t_interval(both), _p_value(both), detectable=detectable, **shared)


def _p_value(difference: np.ndarray) -> float:
    """McNemar's exact test where items are plain yes or no, else a paired t test."""
    from scipy.stats import ttest_1samp

    if np.isin(difference, (-1.0, 0.0, 1.0)).all():
        up, down = int((difference > 0).sum()), int((difference < 0).sum())
        return binomial_p_value(up, up + down, 0.5, "two-sided")
    if difference.size < 2:
        return 1.0
    if difference.std() == 0:
        return 0.0
    return float(ttest_1samp(difference, 0.0).pvalue)


def _told(value: Any) -> Any:
    """JSON has neither NaN nor infinity."""
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else "inf"


def _read(value: Any) -> Any:
    return math.nan if value is None else math.inf if value == "inf" else value


def _corrected(rows: Sequence[Row]) -> list[Row]:
    tested = [i for i, row in enumerate(rows) if not math.isnan(row.p)]
    out = list(rows)
    for i, p in zip(tested, holm([rows[i].p for i in tested]), strict=True):
        out[i] = Row(**{**rows[i].__dict__, "p_holm": p})
    return out
