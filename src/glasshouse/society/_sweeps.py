"""Sweeps: a system's point function over a grid and seeds, journalled so that a killed sweep goes on."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime import files
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.executors import Executor, get_executor
from glasshouse.runtime.progress import Progress
from glasshouse.runtime.runs import Run
from glasshouse.society._door import Door, Rows
from glasshouse.society._scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

MOST_POINTS = 100_000
Grid = Mapping[str, Sequence[Any]]
Shard = tuple[str, dict[str, Any], int]
"""Door, scenario as JSON, seed: all that a point needs, so that it can be sent to another process."""


def sweep(
    door: Door,
    scenario: Scenario,
    over: Grid,
    *,
    seeds: Sequence[int],
    out: Path | str = "glasshouse-runs",
    executor: str | Executor = "local",
) -> tuple[Rows, Path]:
    """Rows of every grid point and seed, in the order of the grid, and the folder of the run.

    `over` maps fields of the scenario to their values; the grid is their product. A killed sweep resumes at
    the first missing point, a finished one is read back. What comes out does not depend on the executor.
    Raises InputError for an unknown field, an empty axis, a point that is no valid scenario, or no seed.
    """
    shards = _shards(door, scenario, over, seeds)
    spec = {
        "system": door.name, "scenario": scenario.to_json(), "over": {k: list(v) for k, v in over.items()},
        "seeds": list(seeds), "code": code_version(door.point),
    }  # fmt: skip
    with Run.open(out, f"society-{door.name}", spec) as run:
        if not run.finished:
            _fill(run, shards, get_executor(executor), f"{door.name}: points")
            run.finish()
        rows = [row for index in range(len(shards)) for row in run.steps[f"point/{index}"]]
        return rows, run.path


def grid_points(over: Grid) -> Iterator[dict[str, Any]]:
    """The product of the axes, the last one fastest; one empty point for an empty grid."""
    for values in itertools.product(*over.values()):
        yield dict(zip(over, values, strict=True))


def to_frame(rows: Rows) -> pd.DataFrame:
    """The rows as a frame; None in a column of numbers becomes NaN."""
    import pandas as pd

    return pd.DataFrame(rows)


def write_rows(path: Path, rows: Rows) -> Path:
    """Write the rows as Parquet, whole or not."""
    frame = to_frame(rows)
    with files.atomic_path(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return path


def plot(frame: pd.DataFrame, *, x: str, y: str, by: str | None = None, title: str = "") -> go.Figure:
    """Mean of `y` over seeds along `x`, one line per value of `by`; points without a certificate are hollow.

    Raises InputError for a column that the frame does not have.
    """
    import plotly.graph_objects as go

    for column in filter(None, (x, y, by)):
        if column not in frame.columns:
            raise InputError(f"there is no column {column!r}", fix="use one of: " + ", ".join(frame.columns))
    figure = go.Figure()
    groups = [("", frame)] if by is None else [(f"{by} = {name}", part) for name, part in frame.groupby(by)]
    for name, part in groups:
        cells = part.groupby(x)
        mean, spread = cells[y].mean(), cells[y].std().fillna(0.0)
        solid = cells["converged"].all() if "converged" in part else mean == mean
        figure.add_trace(
            go.Scatter(
                name=name, x=mean.index.tolist(), y=mean.tolist(), mode="lines+markers",
                error_y={"array": spread.tolist(), "visible": True},
                marker={"symbol": ["circle" if ok else "circle-open" for ok in solid]},
            )
        )  # fmt: skip
    return figure.update_layout(title=title, xaxis_title=x, yaxis_title=y)


def _shards(door: Door, scenario: Scenario, over: Grid, seeds: Sequence[int]) -> list[Shard]:
    for name, values in over.items():
        if not len(values):
            raise InputError(f"the axis {name!r} has no values", fix="give at least one")
    count = math.prod(len(values) for values in over.values()) * len(seeds)
    if not 0 < count <= MOST_POINTS:
        raise InputError(f"the sweep has {count} points", fix=f"ask for 1 to {MOST_POINTS:,}")
    # Every point is validated before the first is computed.
    changed = [scenario.changed(point, where=f"sweep at {point}") for point in grid_points(over)]
    return [(door.name, one.to_json(), int(seed)) for one in changed for seed in seeds]


def _fill(run: Run, shards: Sequence[Shard], executor: Executor, label: str) -> None:
    done = run.steps
    missing = [index for index in range(len(shards)) if f"point/{index}" not in done]
    with Progress() as progress, progress.task(label, len(shards)) as task:
        task.advance(len(shards) - len(missing))
        for index, rows in zip(missing, executor.map(_point, [shards[i] for i in missing]), strict=True):
            _commit(run, index, rows)
            task.advance()


def _commit(run: Run, index: int, rows: Rows) -> None:
    run.step(f"point/{index}", lambda: rows)


def _point(shard: Shard) -> Rows:
    """Runs in whichever process the executor chose."""
    from glasshouse.society._door import open_door

    name, scenario, seed = shard
    rows = open_door(name).point(scenario, seed)
    return list(json.loads(json.dumps(rows, allow_nan=False)))
