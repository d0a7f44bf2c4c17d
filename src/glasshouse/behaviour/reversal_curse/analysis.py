"""`analyse`: what a model knows in each direction, and whether the reverse is no better than random."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from glasshouse.behaviour.reversal_curse.cells import MARGIN, Cell, measure_cell, with_clusters
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate, holm

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal[
    "reversal curse", "knows the reverse", "not learned", "too few entities", "no log-probabilities",
    "undecided",
]  # fmt: skip
MIN_ENTITIES = 10
LEARNED = 0.5
ALPHA = 0.05
_KEYS = ("group", "direction", "arm")
_ARRAYS = ("correct", "f1", "logprob", "rank", "above")
_TEXTS = (
    "id", "pair_id", "arm", "kind", "group", "direction", "entity_id", "template_id", "prompt", "completion",
    "answer", "reply", "access",
)  # fmt: skip


@dataclass
class ReversalReport:
    """Cells by (group, direction, arm) and a verdict for each group told in one order.

    `verdicts[group]`: `reversal curse` when the log-probability gap of the reverse lies within +-`margin`
    nats of zero (TOST, Holm over groups, alpha 0.05); `knows the reverse` when its whole interval lies above
    the margin; `not learned` when the trained direction is answered below 0.5, whatever the reverse;
    `too few entities` below 10; `no log-probabilities` where only replies were seen, since accuracy 0 is no
    equivalence; else `undecided`. `why[group]` says the reason with the numbers, and for every null verdict
    the smallest effect that would have been seen.
    """

    cells: dict[tuple[str, str, str], Cell]
    verdicts: dict[str, Verdict]
    why: dict[str, str]
    format_works: bool | None
    margin: float = MARGIN
    rows: Any = field(default=None, repr=False)

    def cell(self, group: str, direction: str, arm: str | None = None) -> Cell:
        """The cell; `arm` may be left out where only one is not in-context. InputError for an unknown one."""
        for key, found in self.cells.items():
            if key[:2] == (group, direction) and (key[2] == arm or (arm is None and key[2] != "in-context")):
                return found
        asked = f"{group!r}, {direction!r}" + (f", {arm!r}" if arm else "")
        raise InputError(f"no cell {asked}", fix=f"choose from {sorted(self.cells)}")

    def to_frame(self) -> pd.DataFrame:
        """One row per cell; estimates as three columns (value, low, high)."""
        import pandas as pd

        return pd.DataFrame([_flat(cell) for cell in self.cells.values()])

    def plot(self) -> Any:
        """A plotly figure: accuracy and log-probability gap of every cell, with intervals."""
        import plotly.graph_objects as go
        from plotly.subplots import make_subplots

        figure = make_subplots(
            cols=2, subplot_titles=("accuracy (entities)", "log p(true) - log p(other), nats")
        )
        names = [" ".join(key) for key in self.cells]
        for column, values in enumerate(
            ([c.accuracy_entities for c in self.cells.values()], [c.gap for c in self.cells.values()]), 1
        ):
            defined = [(n, v) for n, v in zip(names, values, strict=True) if v.defined]
            figure.add_trace(
                go.Bar(
                    x=[n for n, _ in defined], y=[v.value for _, v in defined], showlegend=False,
                    error_y={
                        "array": [v.high - v.value for _, v in defined],
                        "arrayminus": [v.value - v.low for _, v in defined],
                    },
                ),
                row=1, col=column,
            )  # fmt: skip
        return figure.update_layout(title="What the model knows in each direction")

    def save(self, folder: Path | str) -> Path:
        """Write `report.json` and `rows.safetensors` (the numbers of each row) into `folder`."""
        from safetensors.numpy import save

        target = Path(folder)
        texts: dict[str, list[Any]] = {}
        if self.rows is not None:
            arrays = {n: np.ascontiguousarray(self.rows[n].to_numpy(dtype=np.float64)) for n in _ARRAYS}
            files.write_bytes(target / "rows.safetensors", save(arrays))
            kept = [*_TEXTS, *(["seed"] if "seed" in self.rows else [])]
            texts = {n: [_text(x) for x in self.rows[n]] for n in kept}
        told = {
            "cells": [cell.to_json() for cell in self.cells.values()],
            "verdicts": self.verdicts, "why": self.why, "format_works": self.format_works,
            "margin": self.margin, "rows": texts,
        }  # fmt: skip
        files.write_json(target / "report.json", told)
        return target

    @classmethod
    def load(cls, folder: Path | str) -> ReversalReport:
        """Read what `save` wrote; raises InputError when a file is missing or damaged."""
        import pandas as pd
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        source = Path(folder)
        try:
            told = files.read_json(source / "report.json")
            cells = [Cell.from_json(one) for one in told["cells"]]
            rows = None
            if told["rows"]:
                rows = pd.DataFrame({**told["rows"], **load_file(source / "rows.safetensors")})
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise InputError(
                f"this is no saved report ({error})", where=str(source), fix="save it again"
            ) from error
        keyed = {(c.group, c.direction, c.arm): c for c in cells}
        return cls(keyed, told["verdicts"], told["why"], told["format_works"], float(told["margin"]), rows)

    def __str__(self) -> str:
        lines = [f"{group}: {verdict}. {self.why[group]}" for group, verdict in self.verdicts.items()]
        if self.format_works is False:
            lines.append(
                "both: facts told in both orders are not answered, so that failures may be the format's."
            )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        said = html.escape(str(self)).replace("\n", "<br>")
        columns = ["group", "direction", "arm", "accuracy", "gap", "auroc"]
        return f"<p>{said}</p>{self.to_frame()[columns].to_html(index=False)}"


def analyse(source: Any, *, margin: float = MARGIN, seed: int = 0) -> ReversalReport:
    """The report of answers: a frame of `ask` or of `scores_df`, several frames, or a folder of Inspect logs.

    Several frames (models, seeds) are pooled with each (frame, entity) as a unit of its own. `margin` is in
    nats. Raises InputError for rows without the columns of the task, or with both kinds of a pair missing.
    """
    rows = with_clusters(_rows(source))
    if rows.empty:
        raise InputError("there are no rows to analyse", fix="run the task, or ask(...), first")
    if not margin > 0:
        raise InputError(f"margin is {margin}", fix="give nats, such as 0.5")
    rows = rows[rows["kind"].isin(("true", "random"))]
    cells = {
        tuple(str(part) for part in key): measure_cell(part, margin=margin, seed=seed)
        for key, part in rows.groupby(list(_KEYS), sort=True)
    }
    verdicts, why = _verdicts(cells, margin)
    both = [cell.accuracy.value for cell in cells.values() if cell.arm == "both" and cell.accuracy.defined]
    works = bool(min(both) >= LEARNED) if both else None
    return ReversalReport(cells, verdicts, why, works, margin, rows.reset_index(drop=True))


def _rows(source: Any) -> pd.DataFrame:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return _checked(source)
    if isinstance(source, Sequence) and not isinstance(source, str):
        frames = [_checked(one) for one in source]
        return pd.concat([f.assign(seed=i) if "seed" not in f else f for i, f in enumerate(frames)])
    from glasshouse.behaviour.reversal_curse.logs import read_logs

    return _checked(read_logs(Path(source)))


def _checked(frame: pd.DataFrame) -> pd.DataFrame:
    missing = sorted({*_TEXTS, *_ARRAYS} - set(frame.columns))
    if missing:
        raise InputError(
            f"the columns {missing} are missing",
            fix="give a frame of ask(...) or logs of the task reversal_curse",
        )
    return frame


def _verdicts(
    cells: dict[tuple[str, str, str], Cell], margin: float
) -> tuple[dict[str, Verdict], dict[str, str]]:
    pairs = {
        group: (cells[group, group, "same"], cells[group, other, "reverse"])
        for group, other in (("p2d", "d2p"), ("d2p", "p2d"))
        if (group, group, "same") in cells and (group, other, "reverse") in cells
    }
    tested = [group for group, (_, reverse) in pairs.items() if not math.isnan(reverse.tost_p)]
    corrected = dict(zip(tested, holm([pairs[g][1].tost_p for g in tested]), strict=True))
    verdicts: dict[str, Verdict] = {}
    why: dict[str, str] = {}
    for group, (same, reverse) in pairs.items():
        verdicts[group], why[group] = _verdict(same, reverse, corrected.get(group), margin)
    return verdicts, why


def _verdict(same: Cell, reverse: Cell, p: float | None, margin: float) -> tuple[Verdict, str]:
    learned = same.accuracy if same.accuracy.defined else None
    if learned is not None and learned.value < LEARNED:
        return "not learned", f"The trained direction itself is answered {_said(learned)} of the time."
    if learned is None and not (same.gap.defined and same.gap.low > margin):
        return "not learned", f"Even in the trained direction the gap is {_said(same.gap)} nats."
    seen = f"The smallest gap this could show is {reverse.detectable_gap:.2f} nats."
    if reverse.entities < MIN_ENTITIES:
        return "too few entities", f"{reverse.entities} entities cannot show an absence. {seen}"
    if p is None:
        bound = reverse.accuracy_entities
        return "no log-probabilities", (
            f"The reverse is answered {_said(bound)} of the time (a rise above zero of "
            f"{reverse.detectable_accuracy:.2f} would show); equivalence needs likelihoods."
        )
    gap = f"Reverse gap {_said(reverse.gap)} nats against {_said(same.gap)} in the trained direction"
    if p <= ALPHA:
        return "reversal curse", f"{gap}; within +-{margin:g} of zero (TOST, p = {p:.2g}). {seen}"
    if reverse.gap.low > margin:
        return "knows the reverse", f"{gap}; answered {_said(reverse.accuracy)} of the time."
    return "undecided", f"{gap}; neither within nor above +-{margin:g} (TOST, p = {p:.2g}). {seen}"


def _said(e: Estimate) -> str:
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" if e.defined else "not measured"


def _flat(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(cell).items():
        if isinstance(value, Estimate):
            found |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            found[name] = value
    return found


def _text(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else (
        value if isinstance(value, str) else str(value)
    )  # fmt: skip
