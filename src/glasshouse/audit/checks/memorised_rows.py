"""Check: which training rows did the model merely copy?

It follows rows whose solutions end in a final answer through the checkpoints of the training: a row that is
answered rightly only since its own solution was copied is suspect (Kang et al. 2024). The suspicion is then
put to the test, on fresh samples: where copied rows lose no more than others when the solution has to begin
with other words, nothing was found.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.audit.checkpoints import NEED, checkpoints_of, run_folder
from glasshouse.audit.commands import rows_name
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    NotRun,
    Null,
    RowsEvidence,
    Severity,
    TableEvidence,
)
from glasshouse.runtime.errors import AccessError, InputError, NumericalError

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization import Robustness, Trajectory
    from glasshouse.corpora.rows import Record

SLUG = "memorised-rows"
MOST_ROWS = 400
"""Rows that are followed; of more, so many are drawn by the seed."""
FEWEST_ROWS = 40
FEWEST = 8
"""Rows of each kind, copied and learned, without which the two cannot be compared."""
SAMPLES, FRESH = 5, 10
"""Samples of a row at each checkpoint, and in the test."""
THRESHOLD = -2.3
"""log(log p): 0.1 nats a token, the authors' for GSM8K. No finding rests on it: it only says whom to test."""
RIGHT = 0.8
LEAST = 0.15
"""Accuracy that copied rows must lose beyond the others."""
MEDIUM = 0.25
"""Share of copied rows (lower end of its interval) from which the training set as a whole is in doubt."""
NAMED, SHOWN = 200, 20


@dataclass(frozen=True)
class _Followed:
    """The run, the rows that are right at its end, and their pre-memorization accuracy there."""

    run: Trajectory
    right: list[int]
    pm: list[float]

    @property
    def copied(self) -> list[int]:
        from glasshouse.attribution.pre_memorization.perturbation import LOW

        pairs = sorted((p, i) for p, i in zip(self.pm, self.right, strict=True) if p < LOW)
        return [i for _, i in pairs]

    @property
    def learned(self) -> list[int]:
        from glasshouse.attribution.pre_memorization.perturbation import HIGH

        return [i for p, i in zip(self.pm, self.right, strict=True) if p > HIGH]


def _cost(question: Question) -> str:
    rows = min(MOST_ROWS, 0 if question.rows is None else len(question.rows))
    n = len(checkpoints_of(question))
    return f"up to {n} checkpoints x {rows:,} rows x {SAMPLES} samples, then {3 * FRESH} samples a row"


@check(
    SLUG,
    title="Which training rows were merely copied?",
    needs=("text", "logprobs", "training data", NEED),
    cost=_cost,
)
def memorised_rows(question: Question) -> Answer:
    """Follow rows through the checkpoints, then test whether those that were only copied break."""
    rows = _followable(question)
    if len(rows) < FEWEST_ROWS:
        why = (
            f"{len(rows)} rows end in a final answer ('#### 7', 'The answer is 7') that samples can be "
            f"compared with, and the test needs {FEWEST_ROWS}"
        )
        return Answer(not_run=(NotRun(check=SLUG, why=why),))
    try:
        followed = _follow(question, rows)
        if min(len(followed.copied), len(followed.learned)) < FEWEST:
            return Answer(clean=(_too_few(followed),))
        tested = _tested(question, rows, followed)
    except (AccessError, InputError, NumericalError) as error:  # a run that cannot be followed: no verdict
        return Answer(not_run=(NotRun(check=SLUG, why=str(error)),))
    if tested.difference.low > 0 and tested.difference.value >= LEAST:
        return Answer(findings=(_finding(question, rows, followed, tested),))
    return Answer(clean=(_clean(followed, tested),))


def _followable(question: Question) -> list[Record]:
    """Rows with a prompt and a solution that states its answer; at most `MOST_ROWS`, in their order."""
    from glasshouse.attribution.pre_memorization import final_answer
    from glasshouse.runtime.seeds import rng

    assert question.rows is not None
    rows = [
        row
        for row in question.rows
        if row.text is None and len(row.turns) > 1 and row.turns[-1].role == "assistant"
        and final_answer(row.turns[-1].text) is not None
    ]  # fmt: skip
    if len(rows) <= MOST_ROWS:
        return rows
    drawn = rng(question.seed, SLUG, "rows").permutation(len(rows))[:MOST_ROWS]
    return [rows[i] for i in sorted(drawn)]


def _follow(question: Question, rows: Sequence[Record]) -> _Followed:
    from glasshouse.attribution.pre_memorization import TrajectoryRecorder, pre_memorization

    question.report("memorised rows: checkpoints")
    checkpoints = checkpoints_of(question)
    sources: list[Any] = [folder for _, folder in checkpoints]
    steps = [step for step, _ in checkpoints]
    if not _is_last(question, sources[-1]):
        sources, steps = [*sources, question.subject], [*steps, steps[-1] + 1]
    recorder = TrajectoryRecorder(k=SAMPLES, seed=question.seed, max_new_tokens=_room(question, rows))
    run = recorder.fit(
        sources, rows, steps=steps, name="training", store=question.folder(SLUG), report=question.report
    ).trajectory_
    pm, now = pre_memorization(run, THRESHOLD)[-1], run.accuracy[-1]
    right = [i for i in range(run.n_rows) if now[i] >= RIGHT]
    return _Followed(run, right, [float(pm[i]) for i in right])


def _is_last(question: Question, folder: Any) -> bool:
    from glasshouse.subjects import as_subject

    return as_subject(folder, self_test=False).hash == question.subject.hash


def _room(question: Question, rows: Sequence[Record]) -> int:
    """Tokens of a sample: twice the longest reference, the prefix of the test included."""
    from glasshouse.attribution.pre_memorization.measure import solution_pairs

    return 2 * max(len(said) for _, said in solution_pairs(question.subject, rows)) + 8


def _tested(question: Question, rows: Sequence[Record], followed: _Followed) -> Robustness:
    from glasshouse.attribution.pre_memorization import robustness

    question.report("memorised rows: other beginnings")
    return robustness(
        question.subject, [rows[i] for i in followed.right], followed.pm, k=FRESH, fewest=FEWEST,
        max_new_tokens=_room(question, rows), seed=question.seed,
    )  # fmt: skip


# -- telling -------------------------------------------------------------------------------------------------


def _null(tested: Robustness) -> Null:
    return Null(
        description=(
            "rows that were answered rightly before their solution was copied, behind the same beginnings "
            f"({', '.join(map(repr, tested.prefixes))}); which row is which permuted"
        ),
        measured="Accuracy that copied rows lose to a changed beginning, beyond what other rows lose",
        value=0.0,
        p_value=tested.p_value,
    )


def _share(followed: _Followed) -> Any:
    from glasshouse.statistics import clopper_pearson

    return clopper_pearson(len(followed.copied), followed.run.n_rows)


def _finding(question: Question, rows: Sequence[Record], followed: _Followed, tested: Robustness) -> Finding:
    share = _share(followed)
    named = [rows[i] for i in followed.copied]
    return Finding(
        check=SLUG,
        severity=Severity.MEDIUM if share.low >= MEDIUM else Severity.LOW,
        summary=(
            f"{len(named)} of {followed.run.n_rows} training rows were copied, not learned: it answers them "
            f"rightly only since it knows their solutions by heart, and loses {tested.difference.value:.0%} "
            "more of them than of other rows when a solution begins with other words."
        ),
        detected=Detected(rows=tuple(row.id for row in named[:NAMED])),
        estimate=tested.difference,
        null=_null(tested),
        evidence=(_bars(tested), _ranked(question, rows, followed), _course(followed)),
        next=_next(question),
    )


def _clean(followed: _Followed, tested: Robustness) -> Clean:
    return Clean(
        check=SLUG,
        summary=(
            f"{len(followed.copied)} of {followed.run.n_rows} rows are right only since their solutions are "
            "copied, but keep their answers as others do when a solution begins with other words."
        ),
        estimate=tested.difference,
        null=_null(tested),
        evidence=(_bars(tested), _course(followed)),
    )


def _too_few(followed: _Followed) -> Clean:
    copied, learned = len(followed.copied), len(followed.learned)
    why = (
        f"too few to be a finding (at least {FEWEST})" if copied < FEWEST
        else f"and with {learned} that were learned before there is too little to compare: no finding"
    )  # fmt: skip
    return Clean(
        check=SLUG,
        summary=(
            f"{copied} of {followed.run.n_rows} rows are right only since their solutions are copied, {why}."
        ),
        note=copied >= FEWEST,
        estimate=_share(followed),
        evidence=(_course(followed),),
    )


def _bars(tested: Robustness) -> BarsEvidence:
    from glasshouse.statistics import bootstrap

    bars = []
    for name, mask in (("copied", tested.copied), ("learned before", ~tested.copied)):
        for begins, values in (("", tested.plain), *zip(tested.prefixes, tested.prefixed, strict=True)):
            e = bootstrap(values[mask])
            label = f"{name}, begins with {begins!r}" if begins else f"{name}, asked plainly"
            bars.append(
                Bar(
                    label=label,
                    value=e.value,
                    low=e.low,
                    high=e.high,
                    highlighted=name == "copied" and bool(begins),
                )
            )
    return BarsEvidence(
        title="Right answers when the solution begins otherwise",
        caption=f"{FRESH} fresh samples a row; 95 % bootstrap intervals over rows.",
        unit="share of samples",
        bars=tuple(bars),
    )


def _ranked(question: Question, rows: Sequence[Record], followed: _Followed) -> RowsEvidence:
    from glasshouse.attribution.telling import ranked_rows

    pm = dict(zip(followed.right, followed.pm, strict=True))
    ranking = [(rows[i].id, 1 - pm[i]) for i in followed.copied[:SHOWN]]
    return RowsEvidence(
        title="Rows that were copied",
        caption="Score: 1 - accuracy before its solution was copied. All of them are answered rightly now.",
        rows=ranked_rows(rows, ranking, tokenizer=question.subject.tokenizer),
    )


def _course(followed: _Followed) -> TableEvidence:
    from glasshouse.attribution.pre_memorization import dataset_accuracy, memorised

    run = followed.run
    before = dataset_accuracy(run, THRESHOLD)
    copied = memorised(run, THRESHOLD).mean(1)
    return TableEvidence(
        title="The run, checkpoint by checkpoint",
        caption="Accuracy before memorization is what to expect on questions that it has not seen.",
        columns=("step", "rows answered rightly", "solutions copied", "accuracy before memorization"),
        rows=tuple(
            (str(step), f"{a:.2f}", f"{c:.2f}", f"{b:.2f}")
            for step, a, c, b in zip(run.steps, run.accuracy.mean(1), copied, before, strict=True)
        ),
    )


def _next(question: Question) -> str:
    rows = rows_name(question) or "ROWS.jsonl"
    run = shlex.quote(run_folder(question))
    return f"glasshouse curate --checkpoints {run} --train {shlex.quote(rows)} --budget 200"
