"""The methods of `trace` by name: which class, which options it understands, what it needs.

Classes are named, not imported, so that a trace loads its own method only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.attribution.tracing import TraceOptions

Arguments = Callable[["TraceOptions"], dict[str, Any]]

ALWAYS = frozenset({"method", "seed"})
GRADIENTS = ALWAYS | {"modules", "query_agg", "bm25_filter"}
RUN = frozenset({"checkpoints"})


@dataclass(frozen=True)
class Door:
    """A method as `trace` offers it.

    `about`: a few words; `home`: "module:Class"; `uses`: the trace options it understands; `arguments`: what
    its constructor is given; `norms`: its choices of `row_norm`, the first of them for conversations and the
    second for texts where nothing is chosen; `gradients`: whether it needs them; `texts`: whether it reads
    rows as texts rather than as tokens.
    """

    about: str
    home: str
    uses: frozenset[str] = GRADIENTS
    arguments: Arguments = lambda options: {}
    norms: tuple[str, ...] = ("none", "none")
    gradients: bool = True
    texts: bool = False

    def make(self, options: TraceOptions) -> Any:
        """The method, unfitted. Raises InputError for options that cannot work."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)(**self.arguments(options))

    def asks(self, options: TraceOptions, row_norm: str) -> dict[str, Any]:
        """What `score` is given beside queries, rows, executor and store."""
        found: dict[str, Any] = {"query_agg": options.query_agg} if "query_agg" in self.uses else {}
        if options.method == "logra":
            return found | {"mode": _LOGRA_MODES[row_norm]}
        return found | ({"row_norm": row_norm} if "row_norm" in self.uses else {})


def door(name: str) -> Door:
    """The method called `name`. Raises InputError for another name, listing all."""
    if name not in DOORS:
        raise InputError(f"there is no {name!r}", where="--method", fix=f"choose from {', '.join(DOORS)}")
    return DOORS[name]


def _shared(options: TraceOptions) -> dict[str, Any]:
    modules: Any = options.modules[0] if len(options.modules) == 1 else list(options.modules)
    return {"modules": modules, "seed": options.seed}


def _ekfac(options: TraceOptions) -> dict[str, Any]:
    return _shared(options) | {
        "strategy": options.method, "damping": options.damping,
        "factor_examples": options.factor_rows, "query_rank": options.query_rank,
    }  # fmt: skip


def _logra(options: TraceOptions) -> dict[str, Any]:
    rank = {} if options.rank is None else {"rank": options.rank}
    return _shared(options) | rank | {"damping": options.damping}


def _trak(options: TraceOptions) -> dict[str, Any]:
    dim = {} if options.rank is None else {"dim": options.rank}
    models = {} if options.checkpoints is None else {"models": list(_run(options))}
    return _shared(options) | dim | models | {"damping": options.damping}


def _tracin(options: TraceOptions) -> dict[str, Any]:
    return _shared(options) | {"checkpoints": list(_run(options))}


def _source(options: TraceOptions) -> dict[str, Any]:
    """A run that `SourceCheckpoints` recorded knows its optimiser; for another one the options say it."""
    found = _shared(options) | {
        "segments": options.segments, "damping": options.damping,
        "factor_examples": options.factor_rows, "query_rank": options.query_rank,
    }  # fmt: skip
    if (recorded := _recorded(options)) is not None:
        return found | recorded.options()
    return found | {
        "checkpoints": _run(options), "optimizer": options.optimizer,
        "momentum": options.momentum, "weight_decay": options.weight_decay,
    }  # fmt: skip


def _encoder(options: TraceOptions) -> dict[str, Any]:
    return {} if options.encoder is None else {"encoder": options.encoder}


def _recorded(options: TraceOptions) -> Any:
    """The run that `SourceCheckpoints` kept in the folder, None for any other folder."""
    if options.checkpoints is None:
        return None
    recorded = import_module("glasshouse.attribution.source.recorded")
    if not (Path(options.checkpoints) / recorded.NAME).exists():
        return None
    return recorded.recorded_run(options.checkpoints)


def _run(options: TraceOptions) -> Any:
    """The checkpoints of a run, those of a Trainer or those that `SourceCheckpoints` kept."""
    if (recorded := _recorded(options)) is not None:
        return recorded.checkpoints
    read_run = import_module("glasshouse.attribution.checkpoints").read_run
    if options.checkpoints is None:
        raise InputError(
            f"{options.method} follows the training run", where="--checkpoints",
            fix="give the folder that holds its checkpoint-<step> folders",
        )  # fmt: skip
    return read_run(options.checkpoints)


_LOGRA_MODES = {"none": "dot", "self": "cosine"}
_CURVATURE = GRADIENTS | {"damping", "factor_rows", "query_rank", "row_norm"}
_EKFAC = "glasshouse.attribution.ekfac:EKFAC"
_NORMS = ("grad", "none", "self")

DOORS: dict[str, Door] = {
    "ekfac": Door("influence, Kronecker-factored curvature", _EKFAC, _CURVATURE, _ekfac, _NORMS),
    "kfac": Door("the same without the eigenvalue correction", _EKFAC, _CURVATURE, _ekfac, _NORMS),
    "diagonal": Door("the diagonal of the curvature", _EKFAC, _CURVATURE, _ekfac, _NORMS),
    "identity": Door("gradient dot product", _EKFAC, _CURVATURE, _ekfac, _NORMS),
    "logra": Door(
        "projected gradients on disk: many queries", "glasshouse.attribution.logra:LoGra",
        GRADIENTS - {"bm25_filter"} | {"damping", "rank", "row_norm"}, _logra, ("self", "self", "none"),
    ),
    "source": Door(
        "unrolled training, from checkpoints", "glasshouse.attribution.source:SOURCE",
        (_CURVATURE | RUN | {"segments", "optimizer", "momentum", "weight_decay"}), _source, ("grad", "none"),
    ),
    "tracin": Door(
        "gradient products along checkpoints", "glasshouse.attribution.tracin:TracIn",
        GRADIENTS | RUN | {"row_norm"}, _tracin, ("grad", "none"),
    ),
    "trak": Door(
        "random projections, an ensemble of models", "glasshouse.attribution.trak:TRAK",
        GRADIENTS | RUN | {"rank", "damping"}, _trak,
    ),
    "representation": Door(
        "likeness of hidden states", "glasshouse.attribution.similarity:RepresentationSimilarity",
        ALWAYS | {"query_agg"}, lambda options: {}, gradients=False,
    ),
    "embedding": Door(
        "likeness of text embeddings", "glasshouse.attribution.text_similarity:EmbeddingSimilarity",
        ALWAYS | {"encoder", "query_agg"}, _encoder, gradients=False, texts=True,
    ),
    "bm25": Door(
        "words in common", "glasshouse.attribution.text_similarity:BM25",
        ALWAYS | {"query_agg"}, lambda options: {}, gradients=False, texts=True,
    ),
}  # fmt: skip
"""Every method of `trace`, in the order of `--help`."""
