"""`trace`: from a model, its rows and a few questions to ranked rows; resumable, costed before it runs.

prepare (everything that can be refused) -> cost -> trace (fit, score; journalled) -> write_scores
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from glasshouse.attribution.methods import Door, door
from glasshouse.runtime import files
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.runs import Run

if TYPE_CHECKING:
    from glasshouse.attribution.scores import ScoreTable
    from glasshouse.attribution.store import Mapper
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record, TokenRow
    from glasshouse.subjects import Subject

Agg = Literal["each", "mean", "unit_mean"]
Norm = Literal["auto", "none", "grad", "self"]
BY_WORDS, BY_CHANCE = "shares words", "random pool"


@dataclass(frozen=True, kw_only=True)
class TraceOptions:
    """Everything that decides the scores besides model, rows and queries.

    `method` is a name of `glasshouse.attribution.methods.DOORS`. `row_norm` "auto" is "grad" for
    conversations (loss on replies only) and "none" for texts, where the norm would measure a row's
    unpredictable tokens; LoGra's is "self" for both. `bm25_filter` scores only that many rows a query, chosen
    by shared words, and as many random other rows beside them. `rank`: of LoGra's projections, or TRAK's
    width. `checkpoints`: folder of a Trainer run (SOURCE, TracIn; TRAK's models); `segments`, `optimizer`,
    `momentum` and `weight_decay` are SOURCE's. `encoder`: folder of a text encoder.
    """

    method: str = "ekfac"
    query_agg: Agg = "each"
    row_norm: Norm = "auto"
    damping: float | Literal["auto"] = "auto"
    query_rank: int | None = None
    bm25_filter: int | None = None
    factor_rows: int = 10_000
    modules: tuple[str, ...] = ("auto",)
    rank: int | None = None
    checkpoints: str | None = None
    segments: int = 3
    optimizer: Literal["adam", "sgd"] = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    encoder: str | None = None
    seed: int = 0

    @property
    def door(self) -> Door:
        """The method. Raises InputError where there is none of that name."""
        return door(self.method)


@dataclass(frozen=True)
class Prepared:
    """A trace that can run: options, rows and queries are checked and encoded, and nothing is written yet.

    `cut`: ids of the rows that are longer than the model's context, whose ends are not traced. `scored`:
    places of the rows that get a score (None: all). `pools[row_id]` says why a row is among them.
    """

    subject: Subject
    rows: Records
    queries: Records
    options: TraceOptions
    wanted: list[TokenRow] | list[Record]
    units: list[TokenRow] | list[Record]
    method: Any
    cut: tuple[str, ...] = ()
    unfinished: bool = False
    scored: list[int] | None = None
    pools: dict[str, str] = field(default_factory=dict)

    @property
    def candidates(self) -> list[Any] | None:
        """The rows to score, or None for all."""
        return None if self.scored is None else [self.units[i] for i in self.scored]

    @property
    def row_norm(self) -> str:
        """The norm by which rows are divided, `auto` decided."""
        if self.options.row_norm != "auto":
            return self.options.row_norm
        return self.options.door.norms[any(record.text is not None for record in self.rows)]

    @property
    def left_out(self) -> dict[str, list[str]]:
        """Names of the modules whose part in the influence is not counted, by reason."""
        from glasshouse.subjects.capture import describe_modules

        found: dict[str, list[str]] = {}
        if self.options.door.gradients:
            for module in describe_modules(self.subject.model, self.method.modules):
                if not module.selected:
                    found.setdefault(module.why, []).append(module.name)
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know before believing the ranking."""
        notes = []
        if self.cut:
            notes.append(
                f"{len(self.cut):,} of {len(self.rows):,} rows are longer than the model's context of "
                f"{self.subject.context:,} tokens and are traced only so far (first: row {self.cut[0]})."
            )
        if self.unfinished:
            notes.append("The reply goes on beyond what is traced: its end is not asked for.")
        return tuple(notes)

    def spec(self) -> dict[str, Any]:
        """What makes two traces the same trace, the code included."""
        packages = ("torch", "transformers", "tokenizers")
        return {
            "subject": self.subject.hash, "device": str(self.subject.device),
            "rows": self.rows.sha256, "queries": self.queries.sha256,
            "labels": files.sha256_json([getattr(row, "labels", None) for row in self.wanted]),
            **asdict(self.options), "modules": list(self.options.modules),
            "versions": {name: version(name) for name in packages},
            "code": code_version(__name__),
            "fit": self.method._manifest(),  # with the method's own code, which this module only names
        }  # fmt: skip


@dataclass(frozen=True)
class Traced:
    """Scores; `highlight(q, row_id)`: the part of each token; `stored`: an earlier run had done all of it."""

    table: ScoreTable
    prepared: Prepared
    highlight: Callable[[int, str], np.ndarray] | None
    stored: bool = False


def check_options(options: TraceOptions) -> None:
    """Raise InputError for a value that does not exist, and for options the method has no use for."""
    chosen = options.door
    _choice("--query-agg", options.query_agg, Agg)
    _choice("--row-norm", options.row_norm, Norm)
    _choice("--optimizer", options.optimizer, Literal["adam", "sgd"])
    for name in ("query_rank", "bm25_filter", "factor_rows", "rank", "segments"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"it is {value}", where=_flag(name), fix="give at least 1")
    if options.damping != "auto":
        from glasshouse.attribution.stages.curvature import check_damping

        check_damping(options.damping)
    plain = TraceOptions(method=options.method, seed=options.seed)
    given = [k for k, v in asdict(options).items() if v != getattr(plain, k)]
    if unused := [k for k in given if k not in chosen.uses]:
        raise InputError(f"{options.method} has no use for it", where=_flag(unused[0]), fix="leave it out")
    if options.query_agg == "unit_mean" and not chosen.gradients:
        raise InputError(
            f"{options.method} compares and has no gradient to scale", where="--query-agg", fix="use mean"
        )
    if options.row_norm != "auto" and options.row_norm not in chosen.norms:
        raise InputError(
            f"{options.method} has no row norm {options.row_norm!r}", where="--row-norm",
            fix=f"choose from {', '.join(sorted(set(chosen.norms)))}",
        )  # fmt: skip


def prepare(
    subject: Subject, rows: Records, queries: Records, options: TraceOptions, *, unfinished: bool = False
) -> Prepared:
    """Check and encode everything; `unfinished`: the completions stop in the middle and have no end token.

    Raises InputError for options, rows and queries that cannot be used, UntrackedModuleError for layers,
    AccessError for a subject without gradients.
    """
    check_options(options)
    _check_queries(queries)
    if options.door.texts:
        words = options.door.make(options).bind(subject, list(rows))
        return Prepared(subject, rows, queries, options, list(queries), list(rows), words)
    if options.door.gradients and "gradients" not in subject.access:
        raise AccessError(
            f"{subject.name} gives no gradients", fix="open local weights, or use --method bm25"
        )
    wanted = encode_queries(subject, queries, unfinished=unfinished)
    units, cut = encode_rows(subject, rows)
    scored, pools = _pool(rows, queries, options)
    method = options.door.make(options).bind(subject, units)
    return Prepared(subject, rows, queries, options, wanted, units, method, cut, unfinished, scored, pools)


def encode_queries(subject: Subject, queries: Records, *, unfinished: bool = False) -> list[TokenRow]:
    """Queries as token rows with loss on the completion only.

    A chat reply includes its end-of-turn token, unless it is `unfinished`; a base model's completion is a
    piece of text and has no end. Raises InputError naming a query that the model's context does not hold.
    """
    from glasshouse.corpora.tokens import encode_records

    rows = encode_records(subject.tokenizer, list(queries), loss_on="reply")
    for row, record in zip(rows, queries, strict=True):
        if len(row) > subject.context:
            raise InputError(
                f"it has {len(row)} tokens and the model's context holds {subject.context}",
                where=record.where or f"query {record.id!r}",
                fix="shorten its prompt",
            )
    ended = subject.is_chat or subject.tokenizer.eos_token_id is not None
    return [_open_ended(row) for row in rows] if ended and (unfinished or not subject.is_chat) else rows


def encode_rows(subject: Subject, rows: Records) -> tuple[list[TokenRow], tuple[str, ...]]:
    """Rows as tokens, cut to the model's context, and the ids of those that were cut.

    Raises InputError naming a row without a reply, or with none left after the cut.
    """
    from glasshouse.corpora.tokens import encode_records

    units = encode_records(subject.tokenizer, list(rows))
    long = [i for i, row in enumerate(units) if len(row) > subject.context]
    shorter = encode_records(subject.tokenizer, [rows[i] for i in long], max_length=subject.context)
    for i, row in zip(long, shorter, strict=True):
        units[i] = row
    return units, tuple(rows[i].id for i in long)


def trace(
    prepared: Prepared,
    *,
    runs: Path | str,
    report: Callable[[str], None] = lambda text: None,
    executor: str | Mapper | None = None,
) -> Traced:
    """Score the rows for each query. A killed trace goes on where it was when it is asked again.

    Raises RunError when another process works on the same trace or stored parts are damaged.
    """
    with Run.open(runs, "trace", prepared.spec()) as run:
        stored = run.finished
        table, highlight = _scored(prepared, run, report, executor)
        run.finish()
    return Traced(table, prepared, highlight, stored)


def _scored(
    prepared: Prepared, run: Run, report: Callable[[str], None], executor: str | Mapper | None
) -> tuple[ScoreTable, Callable[[int, str], np.ndarray] | None]:
    options, method, candidates = prepared.options, prepared.method, prepared.candidates
    verb = "reading back" if run.finished else "fitting"
    fitted = min(len(prepared.rows), options.factor_rows if "factor_rows" in options.door.uses else 1 << 62)
    report(f"{verb} {options.method} on {fitted:,} rows")
    workers = _workers(executor)
    fitting = _Watched(workers, "fit")
    method.fit(prepared.subject, prepared.units, executor=fitting, store=run.folder("fit"))
    report(f"scoring {len(candidates or prepared.units):,} rows")
    table = method.score(
        prepared.wanted,
        "completion_logprob",
        candidates=candidates,
        executor=_Watched(workers, "scores"),
        store=run.folder("scores"),
        **options.door.asks(options, prepared.row_norm),
    )
    if not hasattr(method, "explain"):
        return table, None
    return table, lambda q, row: method.explain(q, row, candidates=candidates).scores[0]


@dataclass(frozen=True)
class _Watched:
    """An executor whose finished shards are counted on the display."""

    workers: Mapper
    label: str

    def map(self, fn: Callable[[Any], Any], shards: Sequence[Any]) -> Iterator[Any]:
        from glasshouse.runtime.progress import track

        return track(self.workers.map(fn, shards), self.label, total=len(shards))


def _workers(executor: str | Mapper | None) -> Mapper:
    from glasshouse.runtime.executors import get_executor

    return get_executor(executor or "local") if executor is None or isinstance(executor, str) else executor


def _check_queries(queries: Records) -> None:
    for record in queries:
        if record.text is not None or not record.turns or record.turns[-1].role != "assistant":
            raise InputError(
                "a query needs a prompt and a completion",
                where=record.where or f"query {record.id!r}",
                fix='write {"prompt": ..., "completion": ...} or a conversation that ends with a reply',
            )


def _open_ended(row: TokenRow) -> TokenRow:
    """The row without loss on its last labelled token, the end token; kept where that is all there is."""
    from glasshouse.corpora.rows import IGNORE, TokenRow

    said = [t for t, label in enumerate(row.labels) if label != IGNORE]
    if len(said) < 2:
        return row
    labels = tuple(IGNORE if t == said[-1] else label for t, label in enumerate(row.labels))
    return TokenRow(row.ids, labels, row.row_id)


def _pool(rows: Records, queries: Records, options: TraceOptions) -> tuple[list[int] | None, dict[str, str]]:
    """Places of the rows to score: all, or those that share words with a query and as many random others."""
    if options.bm25_filter is None or options.bm25_filter >= len(rows):
        return None, {}
    from glasshouse.attribution.bm25 import bm25_filter
    from glasshouse.runtime.seeds import rng

    texts = [record.plain for record in rows]
    best = bm25_filter([q.plain for q in queries], texts, keep=options.bm25_filter, seed=options.seed)
    lexical = {i for row in best for i in row}
    others = [i for i in range(len(rows)) if i not in lexical]
    drawn = rng(options.seed, "random pool").permutation(len(others))[: options.bm25_filter]
    kept = sorted(lexical | {others[k] for k in drawn})
    return kept, {rows[i].id: BY_WORDS if i in lexical else BY_CHANCE for i in kept}


def _choice(flag: str, value: object, allowed: Any) -> None:
    if value not in get_args(allowed):
        names = ", ".join(get_args(allowed))
        raise InputError(f"there is no {value!r}", where=flag, fix=f"choose from {names}")


def _flag(name: str) -> str:
    return "--module" if name == "modules" else "--" + name.replace("_", "-")
