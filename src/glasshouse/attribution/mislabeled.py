"""`mislabeled`: training rows ranked by how little the model believes their label; resumable, costed first.

prepare (everything that can be refused) -> cost -> rank (fit, score; journalled) -> mislabeled_page.write

    codelength       loss of the label and complexity of the point, balanced (IF-COMP; closed sets of answers)
    el2n             |p - e_y|^2 over the answers (closed sets of answers)
    loss             -log p of the label among the answers; of free replies, nats a token
    self-influence   how much training on the row again would move its own loss (EK-FAC)
    grand            size of the row's gradient
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from glasshouse.attribution.label_sets import LabelSet, find_labels, label_logprobs
from glasshouse.runtime.codeversion import code_version
from glasshouse.runtime.errors import AccessError, InputError
from glasshouse.runtime.runs import Run

if TYPE_CHECKING:
    from glasshouse.attribution.ekfac import EKFAC
    from glasshouse.attribution.ifcomp import IFComp
    from glasshouse.attribution.store import Mapper
    from glasshouse.corpora.records import Records
    from glasshouse.corpora.rows import Record, TokenRow
    from glasshouse.subjects import Subject

Method = Literal["codelength", "self-influence", "loss", "el2n", "grand"]
CLOSED = ("codelength", "el2n")
"""Methods that compare answers, and so need a closed set of them."""
GRADIENTS = ("codelength", "self-influence", "grand")
TEMPERATURE = 3.0
"""Of the code length: the label still enters, and a confident model still has gradients."""
FACTOR_ROWS = 2_000


@dataclass(frozen=True, kw_only=True)
class MislabeledOptions:
    """What decides the ranking besides model and rows. `labels`: the closed set, if it is not to be found."""

    method: Method = "codelength"
    labels: tuple[str, ...] | None = None
    temperature: float = TEMPERATURE
    modules: tuple[str, ...] = ("auto",)
    seed: int = 0


@dataclass(frozen=True)
class Prepared:
    """A ranking that can run.

    `records`: the rows that are ranked; `found`: their closed set of answers, None where replies are free;
    `method`: what takes gradients, bound but not fitted, None for methods of the forward pass.
    """

    subject: Subject
    rows: Records
    options: MislabeledOptions
    found: LabelSet | None
    records: tuple[Record, ...]
    method: IFComp | EKFAC | None = None
    units: Sequence[TokenRow] = ()
    notes: tuple[str, ...] = ()

    def spec(self) -> dict[str, Any]:
        """What makes two rankings the same ranking, the code included."""
        return {
            "subject": self.subject.hash, "device": str(self.subject.device), "rows": self.rows.sha256,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.options).items()},
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
            "code": code_version(__name__),
        }  # fmt: skip


@dataclass(frozen=True)
class Ranked:
    """`scores` [n] of each row of `prepared.records`, higher = less believed; `order` [n], worst first.

    With a closed set `logprobs` [n, C] are those of every answer; `parts`: other scores [n] that came along.
    `stored`: an earlier run had done all of it.
    """

    prepared: Prepared
    scores: np.ndarray
    logprobs: np.ndarray | None = None
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    stored: bool = False

    @property
    def order(self) -> np.ndarray:
        """Row indices, worst first."""
        return np.argsort(-self.scores, kind="stable")

    @property
    def preferred(self) -> np.ndarray | None:
        """The answer that the model prefers, [n]."""
        return None if self.logprobs is None else self.logprobs.argmax(1)


def check_options(options: MislabeledOptions) -> None:
    """Raise InputError for a method that does not exist, and options that cannot be."""
    if options.method not in get_args(Method):
        names = ", ".join(get_args(Method))
        raise InputError(f"there is no {options.method!r}", where="--method", fix=f"choose from {names}")
    if not (options.temperature > 0 and np.isfinite(options.temperature)):
        raise InputError(f"it is {options.temperature}", where="--temperature", fix="give a positive number")


def prepare(subject: Subject, rows: Records, options: MislabeledOptions) -> Prepared:
    """Check and encode everything; nothing is run. Raises InputError, AccessError, UntrackedModuleError."""
    check_options(options)
    if options.method in GRADIENTS and "gradients" not in subject.access:
        raise AccessError(
            f"{subject.name} gives no gradients", fix="open local weights, or use --method loss"
        )
    found = _labels(rows, options)
    places = range(len(rows)) if found is None else found.places
    records = [rows[int(i)] for i in places]
    kept, long = _fitting(subject, records, found)
    if not kept:
        raise InputError("every row is longer than the model's context", fix="shorten the rows")
    records = [records[i] for i in kept]
    found = None if found is None else found.subset(kept)
    notes = _notes(rows, found, long)
    prepared = Prepared(subject, rows, options, found, tuple(records), notes=notes)
    return _bound(prepared)


def rank(
    prepared: Prepared,
    *,
    runs: Path | str,
    report: Callable[[str], None] = lambda text: None,
    executor: str | Mapper | None = None,
) -> Ranked:
    """Score every row. A killed ranking goes on where it was when it is asked again."""
    with Run.open(runs, "mislabeled", prepared.spec()) as run:
        stored = run.finished
        scored = _RANKERS[prepared.options.method](prepared, run, report, executor)
        run.finish()
    scores, logprobs, parts = scored
    if not np.isfinite(scores).all():
        bad = prepared.records[int((~np.isfinite(scores)).argmax())].id
        raise InputError(
            f"the score of row {bad!r} is not a number", fix="look at the row and the checkpoint"
        )
    return Ranked(prepared, scores, logprobs, parts, stored)


def expected_cost(prepared: Prepared) -> str:
    """A sentence: rows, answers, operations, minutes on this machine."""
    from glasshouse.attribution.costing import GEMM_SHARE, _duration, _rate, _scale

    rows = f"{len(prepared.records):,} rows"
    rows += "" if prepared.found is None else f" x {len(prepared.found.labels)} answers"
    if prepared.method is None:
        return f"{rows}: one forward pass over them"
    count = len(prepared.records)
    flops = sum(
        v for k, v in prepared.method.cost(count).items() if not k.endswith("_bytes") and k != "scores"
    )
    seconds = flops / (GEMM_SHARE * _rate(str(prepared.subject.device)))
    return (
        f"{rows}, layers: {len(prepared.method.names_)}; {_scale(flops)}FLOP, about {_duration(seconds)} here"
    )


# -- inside --------------------------------------------------------------------------------------------------


def _labels(rows: Records, options: MislabeledOptions) -> LabelSet | None:
    if options.labels is not None or options.method in CLOSED:
        return find_labels(rows, options.labels)
    try:
        return find_labels(rows)
    except InputError:
        return None  # free replies: loss and gradients of the reply itself


def _fitting(
    subject: Subject, records: Sequence[Record], found: LabelSet | None
) -> tuple[list[int], list[str]]:
    """Which rows the context holds, with their longest answer, and the ids of the others."""
    from glasshouse.attribution.label_sets import as_asked
    from glasshouse.corpora.tokens import encode_records

    longest = None if found is None else max(found.labels, key=len)
    asked = [record if longest is None else as_asked(record, longest) for record in records]
    sizes = [len(row) for row in encode_records(subject.tokenizer, asked)]
    kept = [i for i, size in enumerate(sizes) if size + (longest is not None) <= subject.context]
    inside = set(kept)
    return kept, [record.id for i, record in enumerate(records) if i not in inside]


def _notes(rows: Records, found: LabelSet | None, long: list[str]) -> tuple[str, ...]:
    notes = []
    if found is not None:
        counts = ", ".join(f"{label.strip()!r} ({n:,})" for label, n in found.counts().items())
        notes.append(f"Answers: {counts}.")
        if found.left_out:
            notes.append(
                f"{len(found.left_out):,} of {len(rows):,} rows say something else and are not ranked."
            )
    else:
        notes.append("The replies come from no closed set: each is judged alone, by its tokens.")
    if long:
        notes.append(f"{len(long):,} rows are longer than the context and are not ranked (first: {long[0]}).")
    return tuple(notes)


def _bound(prepared: Prepared) -> Prepared:
    """With what takes gradients, bound to rows: refusals come before the cost is said."""
    from dataclasses import replace

    from glasshouse.corpora.tokens import encode_records

    options, subject = prepared.options, prepared.subject
    modules: Any = options.modules[0] if len(options.modules) == 1 else list(options.modules)
    if options.method == "codelength":
        from glasshouse.attribution.ifcomp import Choices, IFComp

        assert prepared.found is not None
        local = LabelSet(prepared.found.labels, np.arange(len(prepared.records)), prepared.found.given)
        choices = Choices.from_records(subject, prepared.records, local)
        method: Any = IFComp(
            options.temperature, modules=modules, seed=options.seed, factor_examples=FACTOR_ROWS
        )
        return replace(prepared, method=method.bind(subject, choices))
    units = encode_records(subject.tokenizer, list(prepared.records))
    if options.method not in GRADIENTS:
        return replace(prepared, units=units)
    from glasshouse.attribution.ekfac import EKFAC

    strategy: Any = "ekfac" if options.method == "self-influence" else "identity"
    method = EKFAC(strategy, modules=modules, seed=options.seed, factor_examples=FACTOR_ROWS)
    return replace(prepared, method=method.bind(subject, units), units=units)


Scored = tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]


def _codelength(
    prepared: Prepared, run: Run, report: Callable[[str], None], executor: str | Mapper | None
) -> Scored:
    from glasshouse.attribution.ifcomp import IFComp

    method: Any = prepared.method
    assert isinstance(method, IFComp)
    choices = method.train_
    report(f"fitting the tempered curvature on {min(len(choices), FACTOR_ROWS):,} rows")
    method.fit(prepared.subject, choices, executor=executor, store=run.folder("fit"))
    report(f"scoring {len(choices):,} rows")
    found = method.complexity(choices, executor=executor, store=run.folder("gram"))
    assert prepared.found is not None
    weight = found.balanced_weight(prepared.found.given)
    parts = {"loss": found.loss(), "complexity": found.parametric}
    return found.codelength(weight=weight), found.logits, parts


def _compared(
    prepared: Prepared, run: Run, report: Callable[[str], None], executor: str | Mapper | None
) -> Scored:
    """Loss or EL2N among the answers, or the loss of free replies."""
    found, rows = prepared.found, prepared.records
    if found is None:
        values = run.step("loss", lambda: _free_loss(prepared, report))
        return np.asarray(values, dtype=np.float64), None, {}
    logprobs = _by_parts(prepared, found, run, report)
    shifted = logprobs - logprobs.max(1, keepdims=True)
    p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    at = np.arange(len(rows))
    loss = np.log(np.exp(shifted).sum(1)) - shifted[at, found.given]
    if prepared.options.method == "loss":
        return loss, logprobs, {}
    p[at, found.given] -= 1
    return np.square(p).sum(1), logprobs, {"loss": loss}


def _by_parts(prepared: Prepared, found: LabelSet, run: Run, report: Callable[[str], None]) -> np.ndarray:
    from glasshouse.attribution.label_sets import CHUNK

    parts: list[Any] = []
    for start in range(0, len(prepared.records), 2 * CHUNK):
        some = prepared.records[start : start + 2 * CHUNK]
        report(f"scoring rows {start + 1:,} to {start + len(some):,} of {len(prepared.records):,}")
        parts += run.step(
            f"logprobs-{start}",
            lambda some=some: label_logprobs(prepared.subject, some, found.labels).tolist(),
        )
    return np.asarray(parts, dtype=np.float64)


def _free_loss(prepared: Prepared, report: Callable[[str], None]) -> list[float]:
    """Nats a token of each row's labelled tokens."""
    import torch

    from glasshouse.attribution.objectives import TokenLoss
    from glasshouse.attribution.units import as_units, cost_batches
    from glasshouse.corpora.rows import IGNORE

    units = as_units(list(prepared.units), tokenizer=prepared.subject.tokenizer)
    model = prepared.subject.model
    out = np.zeros(len(units))
    report(f"reading {len(units):,} rows")
    for at in cost_batches(units.sizes, range(len(units)), 4096, 256):
        batch = units.batch(at).to(next(model.parameters()).device)
        with torch.no_grad():
            out[at] = TokenLoss()(model, batch).double().cpu().numpy()
    tokens = [sum(label != IGNORE for label in row.labels[1:]) for row in prepared.units]
    return (out / np.array(tokens)).tolist()  # type: ignore[no-any-return]


def _gradients(
    prepared: Prepared, run: Run, report: Callable[[str], None], executor: str | Mapper | None
) -> Scored:
    method: Any = prepared.method
    report(f"fitting on {min(len(prepared.units), FACTOR_ROWS):,} rows")
    method.fit(prepared.subject, list(prepared.units), executor=executor, store=run.folder("fit"))
    report(f"scoring {len(prepared.units):,} rows")
    values = run.step("scores", lambda: [float(v) for v in method.self_score(executor=executor)])
    scores = np.asarray(values, dtype=np.float64)
    return (np.sqrt(scores) if prepared.options.method == "grand" else scores), None, {}


_RANKERS: dict[str, Callable[[Prepared, Run, Callable[[str], None], Any], Scored]] = {
    "codelength": _codelength,
    "self-influence": _gradients,
    "grand": _gradients,
    "loss": _compared,
    "el2n": _compared,
}
