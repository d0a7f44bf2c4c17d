"""Pairs scored a second: from a log on disk, and by EK-FAC, which runs the model for every row again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

RANK = 16


def throughput(folder: Path, rows: int, queries: int, pieces: int) -> dict[str, Any]:
    """Pairs a CPU second in each of `pieces` parts of the rows, query gradients not counted on either side.

    The model is the canary's at random weights: speed does not depend on what it learned. `ratio` is disk
    over EK-FAC, `again` is LoGra that sketches the rows anew over EK-FAC.
    """
    import torch

    from glasshouse.attribution import EKFAC, LoGra, as_units
    from glasshouse.attribution.logra.search import Rule, dense
    from glasshouse.attribution.stages import scoring
    from glasshouse.attribution.store import Here
    from glasshouse.organisms.planted_canary import canary_world, new_model

    torch.set_num_threads(1)
    data = as_units(_rows(canary_world(0).rows, canary_world(1).rows, rows))
    asked, model = data.subset(range(queries)), new_model(0)
    log = LoGra(RANK, shards=pieces).fit(model, data, store=folder)
    log.score(asked, "loss")
    exact = EKFAC(factor_examples=500).fit(model, data)
    exact.score(asked, "loss", candidates=data.subset(range(2)))
    plan, found = scoring.Plan("auto"), {"disk": [], "ekfac": [], "again": []}
    job = exact._job(data, exact.objective_)
    for number, shard in enumerate(log._shards(data)):
        pairs = len(shard) * queries
        one = _part(log.log_, number)
        rule, n = Rule(rows, "dot"), len(shard)
        clock = time.process_time()
        dense(one, log.queries_, rule, tokens=False, per_module=False, mapper=None, kept=None)
        found["disk"].append(pairs / (time.process_time() - clock))
        if number >= 2:
            continue  # two parts of the slow ones are enough
        few = list(shard)[: n // 2]
        clock = time.process_time()
        scoring.score_shard(job, exact.queries_, exact.factors_, plan, few)
        found["ekfac"].append(len(few) * queries / (time.process_time() - clock))
        clock = time.process_time()
        anew = log._candidates(data.subset(few), Here())
        dense(anew, log.queries_, rule, tokens=False, per_module=False, mapper=None, kept=None)
        found["again"].append(len(few) * queries / (time.process_time() - clock))
    base = float(np.mean(found["ekfac"]))
    return {
        **found,
        "ratio": [x / base for x in found["disk"]],
        "again_ratio": [x / base for x in found["again"]],
        "bytes_per_row": log.log_.bytes / rows,
        "bytes": log.log_.bytes,
        "log_rows_per_second": rows / log.seconds_["log"],
        "peak_mib": _peak(folder, queries),
    }


def _rows(first: list[Any], second: list[Any], count: int) -> list[Any]:
    """`count` rows of two worlds, under new names."""
    from glasshouse.corpora.rows import TokenRow

    both = [*first, *second][:count]
    return [TokenRow(row.ids, row.labels, f"row {i}") for i, row in enumerate(both)]


def _part(log: Any, number: int) -> Any:
    """The log with one of its shards only."""
    from dataclasses import replace

    starts = log.starts()
    ids = log.ids[starts[number] : starts[number + 1]]
    return replace(
        log,
        shards=[log.shards[number]],
        exponents=[log.exponents[number]],
        lines=[log.lines[number]],
        ids=ids,
    )


def _peak(folder: Path, queries: int) -> float | None:
    """MiB that a fresh process needs beyond its imports to find the best 50 rows of every query."""
    from glasshouse.runtime.executors import Processes

    (mib,) = Processes(1).map(searched, [(str(folder), queries)])
    return mib if mib == mib else None


def searched(job: tuple[str, int]) -> float:
    """Search the log in `folder` with random queries; MiB by which this process's memory rose at its peak.

    NaN where the system does not tell (no /proc).
    """
    import torch

    from glasshouse.attribution.logra.log import SketchLog
    from glasshouse.attribution.logra.search import Asked, Rule, best

    folder, queries = job
    log = SketchLog.open(Path(folder) / "log")
    asked = Asked(tuple(map(str, range(queries))), torch.randn(queries, log.layout.width), (1.0,) * queries)
    rule = Rule(len(log), "dot")
    if not Path("/proc/self/clear_refs").exists():
        return float("nan")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of the imports
    before = _status("VmRSS")
    best(log, asked, rule, 50)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> float:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])
