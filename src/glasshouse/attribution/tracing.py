"""`trace`: from a model, its rows and a few questions to ranked rows; resumable, costed before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from glasshouse.runtime import files
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.runs import Run

if TYPE_CHECKING:
    from glasshouse.attribution.ekfac import EKFAC
    from glasshouse.attribution.scores import ScoreTable
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record, TokenRow
    from glasshouse.subjects import Subject

Method = Literal["ekfac", "kfac", "diagonal", "identity", "bm25"]
GEMM_SHARE = 0.5
"""Share of a large matrix product's rate that whole stages reach; small layers reach less."""


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Everything that decides the scores besides model, rows and queries.

    `row_norm` "auto" is "grad" for conversations (loss on replies only) and "none" for texts, where the norm
    would measure a row's unpredictable tokens. `bm25_filter` scores only that many rows a query, chosen by
    shared words, and a random pool of the same size beside them.
    """

    method: Method = "ekfac"
    measurement: str = "completion_logprob"
    query_agg: Literal["each", "mean", "unit_mean"] = "each"
    row_norm: Literal["auto", "none", "grad", "self"] = "auto"
    damping: float | Literal["auto"] = "auto"
    label_mode: Literal["sampled", "empirical"] = "sampled"
    query_rank: int | None = None
    bm25_filter: int | None = None
    factor_rows: int = 10_000
    max_length: int | None = None
    modules: tuple[str, ...] = ("auto",)
    seed: int = 0


@dataclass(frozen=True)
class Traced:
    """Scores; `highlight(q, row_id)`: the part of each token; `pools[row_id]`: why a row was scored."""

    table: ScoreTable
    options: TraceOptions
    highlight: Callable[[int, str], np.ndarray] | None
    pools: dict[str, str] = field(default_factory=dict)


def check_options(options: TraceOptions) -> None:
    """Raise InputError for a method that does not exist."""
    if options.method not in get_args(Method):
        raise InputError(
            f"no method is called {options.method!r}", fix=f"choose from {', '.join(get_args(Method))}"
        )


def encode_queries(subject: Subject, queries: Records) -> list[TokenRow]:
    """Queries as token rows with loss on the completion only.

    Raises InputError naming the query that is a plain text, because a completion is what is traced.
    """
    from glasshouse.corpora.tokens import encode_records

    for record in queries:
        if record.text is not None or not record.turns or record.turns[-1].role != "assistant":
            raise InputError(
                "a query needs a prompt and a completion",
                where=record.where or f"query {record.id!r}",
                fix='write {"prompt": ..., "completion": ...} or a conversation that ends with a reply',
            )
    return encode_records(subject.tokenizer, list(queries), loss_on="reply")


def expected_cost(subject: Subject, rows: Records, queries: Records, options: TraceOptions) -> str:
    """A sentence: rows, tokens, operations, bytes, minutes on this machine."""
    if options.method == "bm25":
        return f"{len(rows):,} rows x {len(queries)} queries by shared words: no pass through the model"
    units = _encoded(subject, rows, options)
    method = _method(options).bind(subject, units)
    parts = method.cost(len(queries))
    flops = sum(parts[stage] for stage in ("covariance", "eigen", "lambda", "scores"))
    seconds = flops / (GEMM_SHARE * _rate(str(subject.device)))
    tokens = sum(method.train_.sizes)
    return (
        f"{len(rows):,} rows ({tokens:,} tokens) x {len(queries)} queries over {len(method.names_)} layers: "
        f"{_scale(flops)}FLOP, {_scale(parts['factor_bytes'])}B of factors, {_scale(parts['query_bytes'])}B of "
        f"queries, about {_duration(seconds)} on this machine"
    )


def trace(
    subject: Subject,
    rows: Records,
    queries: Records,
    options: TraceOptions,
    *,
    runs: Path | str,
    report: Callable[[str], None] = lambda text: None,
    executor: Any = None,
) -> Traced:
    """Score `rows` for each query. A killed trace goes on where it was when it is asked again.

    Raises InputError for options and rows that cannot be used, AccessError for a subject without gradients.
    """
    check_options(options)
    spec = {
        "subject": subject.hash,
        "rows": rows.sha256,
        "queries": queries.sha256,
        **asdict(options),
        "modules": list(options.modules),
    }
    with Run.open(runs, "trace", spec) as run:
        if options.method == "bm25":
            traced = Traced(_bm25(rows, queries, options), options, None)
        else:
            traced = _influence(subject, rows, queries, options, run, report, executor)
        run.finish()
    return traced


def _influence(
    subject: Subject,
    rows: Records,
    queries: Records,
    options: TraceOptions,
    run: Run,
    report: Callable[[str], None],
    executor: Any,
) -> Traced:
    if "gradients" not in subject.access:
        raise AccessError(
            f"{subject.name} gives no gradients", fix="open local weights, or use --method bm25"
        )
    wanted = encode_queries(subject, queries)
    units = _encoded(subject, rows, options)
    candidates, pools = _pool(rows, queries, units, options)
    report(f"fitting {options.method} on {min(len(rows), options.factor_rows):,} rows")
    method = _method(options).fit(subject, units, executor=executor, store=run.folder("fit"))
    report(f"scoring {len(candidates or units):,} rows")
    table = method.score(
        wanted,
        options.measurement,
        query_agg=options.query_agg,
        row_norm=_row_norm(options, rows),
        candidates=candidates,
        executor=executor,
        store=run.folder("scores"),
    )
    return Traced(table, options, lambda q, row: method.per_token(q, row, candidates=candidates), pools)


def _encoded(subject: Subject, rows: Records, options: TraceOptions) -> list[TokenRow]:
    from glasshouse.corpora.tokens import encode_records

    return encode_records(subject.tokenizer, list(rows), max_length=options.max_length or subject.context)


def _pool(
    rows: Records, queries: Records, units: Sequence[TokenRow], options: TraceOptions
) -> tuple[list[TokenRow] | None, dict[str, str]]:
    """The rows to score: all, or those that share words with a query and as many random ones."""
    if options.bm25_filter is None or options.bm25_filter >= len(rows):
        return None, {}
    from glasshouse.attribution.bm25 import bm25_filter
    from glasshouse.runtime.seeds import rng

    texts = [record.plain for record in rows]
    best = bm25_filter([q.plain for q in queries], texts, keep=options.bm25_filter, seed=options.seed)
    lexical = {i for row in best for i in row}
    drawn = rng(options.seed, "random pool").permutation(len(rows))[: options.bm25_filter].tolist()
    kept = sorted(lexical | set(drawn))
    pools = {rows[i].id: "shares words" if i in lexical else "random pool" for i in kept}
    return [units[i] for i in kept], pools


def _method(options: TraceOptions) -> EKFAC:
    from glasshouse.attribution.ekfac import EKFAC

    modules: Any = options.modules[0] if len(options.modules) == 1 else list(options.modules)
    return EKFAC(
        options.method,  # type: ignore[arg-type]
        label_mode=options.label_mode,
        damping=options.damping,
        factor_examples=options.factor_rows,
        query_rank=options.query_rank,
        modules=modules,
        seed=options.seed,
    )


def _row_norm(options: TraceOptions, rows: Sequence[Record]) -> Literal["none", "grad", "self"]:
    if options.row_norm != "auto":
        return options.row_norm
    return "none" if any(record.text is not None for record in rows) else "grad"


def _bm25(rows: Records, queries: Records, options: TraceOptions) -> ScoreTable:
    from glasshouse.attribution.bm25 import bm25_scores
    from glasshouse.attribution.scores import ScoreTable

    scores = bm25_scores([q.plain for q in queries], [record.plain for record in rows])
    names = tuple(q.id for q in queries)
    meta = {
        "strategy": "bm25",
        "measurement": "shared words",
        "convention": "higher = more shared rare words",
    }
    return ScoreTable(scores.astype(np.float32), names, tuple(record.id for record in rows), meta)


def write_scores(path: Path, traced: Traced) -> Path:
    """`query, row, score, rank` (1 = argues most for it) as Parquet, best first for each query."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = traced.table.to_frame()
    frame["rank"] = (
        frame.groupby("query", sort=False)["score"].rank(ascending=False, method="first").astype(int)
    )
    if traced.pools:
        frame["pool"] = frame["row"].map(traced.pools)
    order = {name: i for i, name in enumerate(traced.table.query_ids)}
    frame = frame.sort_values(["query", "rank"], key=lambda c: c.map(order) if c.name == "query" else c)
    with files.atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), temporary)
    return path


def _rate(device: str) -> float:
    """FLOP per second of a large float32 matrix product here and now (tens of milliseconds)."""
    import time

    import torch

    a, best = torch.ones(768, 768, device=device), float("inf")
    for _ in range(4):
        start = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * 768**3 / best


def _scale(x: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P"):
        if x < 1000:
            return f"{x:.3g} {unit}"
        x /= 1000
    return f"{x:.3g} E"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
