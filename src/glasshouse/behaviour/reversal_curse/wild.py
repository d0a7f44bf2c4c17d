"""Experiment 2, facts a model learned by itself: child to parent against parent to child."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, RecordError
from glasshouse.statistics import Estimate, bootstrap, bootstrap_paired, wilson

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000


@dataclass(frozen=True)
class Pair:
    """Two related things: `forward` is asked for given `a` (answer b), `back` given `b` (answer a).

    `more` fills other places of the question templates, such as `parent_type`.
    """

    id: str
    a: str
    b: str
    more: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """One model in both directions: means over pairs, and the paired difference `a_to_b - b_to_a`."""

    measure: str
    a_to_b: Estimate
    b_to_a: Estimate
    difference: Estimate


@dataclass(frozen=True)
class WildReport:
    """Sides by model; `can_reverse`: share of pairs whose back question was answered at least once."""

    sides: dict[str, Sides]
    can_reverse: dict[str, Estimate]

    def to_frame(self) -> pd.DataFrame:
        """One row per model: the measure, both directions and their difference with intervals."""
        import pandas as pd

        return pd.DataFrame([
            {
                "model": name, "measure": s.measure, "a_to_b": s.a_to_b.value, "b_to_a": s.b_to_a.value,
                "difference": s.difference.value, "low": s.difference.low, "high": s.difference.high,
                "pairs": s.difference.n,
            }
            for name, s in self.sides.items()
        ])  # fmt: skip

    def plot(self) -> Any:
        """A plotly figure: both directions of every model."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name in ("a_to_b", "b_to_a"):
            found = [getattr(s, name) for s in self.sides.values()]
            bars = {
                "array": [e.high - e.value for e in found],
                "arrayminus": [e.value - e.low for e in found],
            }
            figure.add_trace(go.Bar(name=name, x=list(self.sides), y=[e.value for e in found], error_y=bars))
        return figure.update_layout(yaxis_title="mean over pairs")

    def save(self, path: Path | str) -> Path:
        """Write JSON."""
        sides = {
            name: [s.measure, *(e.to_json() for e in (s.a_to_b, s.b_to_a, s.difference))]
            for name, s in self.sides.items()
        }
        reverse = {name: e.to_json() for name, e in self.can_reverse.items()}
        return files.write_json(path, {"sides": sides, "can_reverse": reverse})

    @classmethod
    def load(cls, path: Path | str) -> WildReport:
        """Read what `save` wrote; raises InputError for another file."""
        try:
            told = files.read_json(path)
            return cls(
                {
                    name: Sides(measure, *(Estimate.from_json(e) for e in rest))
                    for name, (measure, *rest) in told["sides"].items()
                },
                {name: Estimate.from_json(e) for name, e in told["can_reverse"].items()},
            )
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"this is no saved report ({error})", where=str(path)) from error


def read_pairs(path: Path | str, *, a: str = "child", b: str = "parent") -> list[Pair]:
    """Pairs from a CSV (also .gz) or JSONL file with columns `a` and `b`; an `id` column names them.

    Every other text column can be used in question templates. Raises RecordError naming file and line.
    """
    source = Path(path)
    found: list[Pair] = []
    seen: set[str] = set()
    for number, row in _rows(source):
        where = f"{source}:{number}"
        for column in (a, b):
            if not str(row.get(column) or "").strip():
                raise RecordError("the field is missing or empty", where=f"{where} field {column!r}")
        name = str(row.get("id") or len(found))
        if name in seen:
            raise RecordError(f"the id {name!r} was used before", where=f"{where} field 'id'")
        seen.add(name)
        more = {k: str(v) for k, v in row.items() if k not in ("id",) and v is not None}
        found.append(Pair(name, str(row[a]).strip(), str(row[b]).strip(), more))
    if not found:
        raise RecordError("the file holds no pairs", where=str(source), fix="give at least one row")
    return found


def sides(measure: str, a_to_b: Sequence[float], b_to_a: Sequence[float], *, seed: int = 0) -> Sides:
    """Both directions from one value per pair each (same order), with bootstrap intervals over pairs."""
    return Sides(
        measure,
        bootstrap(a_to_b, resamples=RESAMPLES, seed=seed),
        bootstrap(b_to_a, resamples=RESAMPLES, seed=seed),
        bootstrap_paired(a_to_b, b_to_a, resamples=RESAMPLES, seed=seed),
    )


def parent_child(path: Path | str) -> WildReport:
    """The paper's own results per pair (`celebrity_pairs_numeric.csv.gz`), analysed again.

    Columns `<model>_freq_find_parent/child` are success rates, `<model>_parent/child_logprob` summed
    log-probabilities of the answer in nats, reported as their mean probability; rows that lack a number are
    left out of that model (n of the estimate says how many stayed). Raises RecordError for a missing column.
    """
    rows = [row for _, row in _rows(Path(path))]
    if not rows or "gpt4_can_reverse" not in rows[0]:
        raise RecordError("the column is missing", where=f"{path} field 'gpt4_can_reverse'")
    found: dict[str, Sides] = {}
    for parent in rows[0]:
        if parent.endswith("_freq_find_parent"):
            model, child = parent.removesuffix("_freq_find_parent"), parent.replace("_parent", "_child")
            found[model] = sides("success rate", *_both(rows, parent, child))
        elif parent.endswith("_parent_logprob"):
            model, child = parent.removesuffix("_parent_logprob"), parent.replace("_parent_", "_child_")
            logs = _both(rows, parent, child)
            found[model] = sides("probability", *([math.exp(x) for x in side] for side in logs))
    reversible = [str(row["gpt4_can_reverse"]).strip().lower() == "true" for row in rows]
    return WildReport(found, {"gpt-4": wilson(sum(reversible), len(reversible))})


def _both(rows: Sequence[Mapping[str, Any]], parent: str, child: str) -> tuple[list[float], list[float]]:
    kept = [row for row in rows if row[parent] not in ("", None) and row[child] not in ("", None)]
    return [float(row[parent]) for row in kept], [float(row[child]) for row in kept]


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    import json

    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecordError(f"the file cannot be read ({error})", where=str(path)) from error
    if ".jsonl" in path.name:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        try:
            return [(n, dict(json.loads(line))) for n, line in lines]
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise RecordError(f"a line is no JSON object ({error})", where=str(path)) from None
    return [(n, dict(row)) for n, row in enumerate(csv.DictReader(io.StringIO(text)), 2)]
