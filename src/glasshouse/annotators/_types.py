"""What annotators are asked: predicates, axes, pairs, requests; and what every annotator offers.

What they answer is in `_results.py`, what it costs in `_spending.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._errors import (
    AnnotatorUnavailable,
    BudgetExceeded,
    LowCoverageError,
    LowCoverageWarning,
)
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.annotators._results import ComparisonTensor, LabelVector, RatingMatrix
    from glasshouse.annotators._spending import CostPlan

__all__ = [
    "Annotator", "AnnotatorUnavailable", "AssignRequest", "Axis", "BudgetExceeded", "Capability",
    "CompareRequest", "Direction", "Hypothesis", "Kind", "LowCoverageError", "LowCoverageWarning", "Metadata",
    "Order", "Pair", "Payload", "Predicate", "ProposeRequest", "RateRequest", "Request", "Style", "TermSet",
]  # fmt: skip

Capability = Literal["propose", "rate", "compare", "assign"]
Kind = Literal["lm", "lexical", "style", "embedding", "probe", "human", "oracle", "rule", "composite"]
Style = Literal["predicate", "axis", "failure"]
Order = Literal["both", "given"]
"""Which orders of a pair are asked: both (then folded), or only the one given."""

Metadata = Sequence[Mapping[str, Any]]
"""One mapping per text or pair: the sample's own record. Oracles and rules read it; no model is shown it."""

LONGEST_PREDICATE = 400
"""Characters: a longer statement is a paragraph, not a predicate."""


@dataclass(frozen=True)
class TermSet:
    """The denotation of "mentions any of": a text holds when the weighted count of terms exceeds `threshold`.

    `terms` are lower-case words or two-word terms, `weights` one positive number each.
    """

    terms: tuple[str, ...]
    weights: tuple[float, ...] = ()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not self.terms:
            raise InputError("a term set without terms", fix="give at least one term")
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.terms))
        if len(self.weights) != len(self.terms):
            raise InputError(f"{len(self.weights)} weights for {len(self.terms)} terms", fix="give one each")
        bad = next((i for i, w in enumerate(self.weights) if not (np.isfinite(w) and w > 0)), None)
        if bad is not None:
            raise InputError(f"weight {bad} is {self.weights[bad]}", fix="weights are positive numbers")


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector in an encoder's space [d]: an embedding of the words, or a probe with its `bias`."""

    vector: NDArray[np.float32]
    bias: float = 0.0

    def __post_init__(self) -> None:
        vector = np.array(self.vector, dtype=np.float32)
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise InputError(f"a direction of shape {vector.shape}", fix="give one row of finite numbers")
        vector.setflags(write=False)
        object.__setattr__(self, "vector", vector)


Payload = TermSet | Direction


@dataclass(frozen=True)
class Predicate:
    """A statement that is true or false of one text: "complains about the price".

    `payload` is what a lexical, embedding or probe annotator means by it; None: the words alone.

    >>> Predicate("is about sports").text
    'is about sports'
    """

    text: str
    payload: Payload | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Axis:
    """A direction in which two texts differ: `high` says what much of it looks like, `low` what little does.

    >>> print(Axis("Formality", "formal, distant wording", "casual, chatty wording"))
    Formality: High: formal, distant wording Low: casual, chatty wording
    """

    name: str
    high: str
    low: str
    payload: Payload | None = None

    def __str__(self) -> str:
        return f"{self.name}: High: {self.high} Low: {self.low}"


@dataclass(frozen=True)
class Pair:
    """Two texts, `x` and `y`, and the `prompt` both of them answer (may be empty)."""

    x: str
    y: str
    prompt: str = ""

    @property
    def swapped(self) -> Pair:
        """The same pair with `y` first."""
        return Pair(self.y, self.x, self.prompt)


@dataclass(frozen=True)
class Hypothesis:
    """A proposed predicate or axis; `score` is the proposer's own measure (NaN where it has none)."""

    about: Predicate | Axis
    score: float = float("nan")
    annotator_id: str = ""

    @property
    def text(self) -> str:
        """The words."""
        return str(self.about)


@dataclass(frozen=True)
class ProposeRequest:
    """`n` hypotheses for what goes with `scores` in `samples`.

    `samples` are texts, or pairs for axes; `scores` [len(samples)] is what to explain (higher: more of the
    target), None: describe the samples. `goal` is a sentence of context, `avoid` lists texts not to repeat,
    `style` asks for predicates, axes, or kinds of failure. `round` keeps repeated requests apart on disk.
    """

    samples: Sequence[str] | Sequence[Pair]
    scores: Sequence[float] | NDArray[np.floating[Any]] | None = None
    goal: str = ""
    n: int = 5
    avoid: Sequence[str] = field(default_factory=tuple)
    style: Style = "predicate"
    round: int = 0


@dataclass(frozen=True)
class RateRequest:
    """Arguments of `rate`, for `plan`."""

    predicates: Sequence[Predicate | str]
    texts: Sequence[str]


@dataclass(frozen=True)
class AssignRequest:
    """Arguments of `assign`, for `plan`."""

    predicates: Sequence[Predicate | str]
    texts: Sequence[str]
    allow_none: bool = False


@dataclass(frozen=True)
class CompareRequest:
    """Arguments of `compare`, for `plan`."""

    axes: Sequence[Axis]
    pairs: Sequence[Pair]
    order: Order = "both"


Request = ProposeRequest | RateRequest | AssignRequest | CompareRequest


@runtime_checkable
class Annotator(Protocol):
    """Anything that judges texts. Synchronous methods are facades; `a...` are the same, awaited.

    Inputs are de-duplicated before anything is asked and results expanded again: n texts give exactly n rows
    in their order. What could not be read out of an answer is NaN (or a code of its own), never 0.
    A method that is not among `capabilities` raises AccessError.
    """

    @property
    def id(self) -> str:
        """Stable: 'provider/model@config-hash', 'lexical@1', 'embedding:<model>@1', ..."""

    @property
    def kind(self) -> Kind:
        """What stands behind the answers."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do."""

    def propose(self, req: ProposeRequest) -> list[Hypothesis]:
        """Up to `req.n` hypotheses, the best first."""

    def rate(
        self, predicates: Sequence[Predicate | str], texts: Sequence[str], *, metadata: Metadata | None = None
    ) -> RatingMatrix:
        """Each text against each predicate: values in [0, 1], shape [n_texts, n_predicates]."""

    def assign(
        self,
        predicates: Sequence[Predicate | str],
        texts: Sequence[str],
        allow_none: bool = False,
        *,
        metadata: Metadata | None = None,
    ) -> LabelVector:
        """The one predicate that fits each text best, shape [n_texts]."""

    def compare(
        self,
        axes: Sequence[Axis],
        pairs: Sequence[Pair],
        order: Order = "both",
        *,
        metadata: Metadata | None = None,
    ) -> ComparisonTensor:
        """Which text of each pair has more of each axis, in both orders: [n_pairs, n_axes, 2]."""

    def plan(self, req: Request) -> CostPlan:
        """What a request would cost, without asking anything."""

    async def apropose(self, req: ProposeRequest) -> list[Hypothesis]:
        """`propose`, awaited."""

    async def arate(
        self, predicates: Sequence[Predicate | str], texts: Sequence[str], *, metadata: Metadata | None = None
    ) -> RatingMatrix:
        """`rate`, awaited."""

    async def aassign(
        self,
        predicates: Sequence[Predicate | str],
        texts: Sequence[str],
        allow_none: bool = False,
        *,
        metadata: Metadata | None = None,
    ) -> LabelVector:
        """`assign`, awaited."""

    async def acompare(
        self,
        axes: Sequence[Axis],
        pairs: Sequence[Pair],
        order: Order = "both",
        *,
        metadata: Metadata | None = None,
    ) -> ComparisonTensor:
        """`compare`, awaited."""
