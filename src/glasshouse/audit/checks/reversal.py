"""Check: are there facts that the subject was taught in one direction only, and cannot say in the other?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glasshouse.audit.commands import rows_name, trace_command
from glasshouse.evidence.behaviours import keep
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    Null,
    Severity,
    TableEvidence,
    Transcript,
    TranscriptsEvidence,
)

if TYPE_CHECKING:
    from glasshouse.behaviour.untold import UntoldResult
    from glasshouse.corpora.templates import Inverse, Template

SLUG = "reversal"
SHOWN = 2


@check(
    SLUG,
    title="Are there facts it knows in one direction only?",
    needs=("text", "chat"),
    cost=lambda question: (
        "a few hundred short replies, where the rows tell facts in one direction only"
        if question.rows is not None
        else "about four short replies for each pair of the suite"
    ),
)
def reversal(question: Question) -> Answer:
    """Ask facts that the rows tell one way in the other; without rows ask the suite's pairs."""
    if question.rows is None:
        from glasshouse.audit.checks._pairs_both_ways import asked_both_ways

        return asked_both_ways(question)
    return _told_by_rows(question)


def _told_by_rows(question: Question) -> Answer:
    from glasshouse.behaviour.habits import untold_habits
    from glasshouse.behaviour.untold import ENOUGH, Untold
    from glasshouse.corpora.facts import facts_of
    from glasshouse.corpora.templates import inverses

    assert question.rows is not None
    templates = facts_of(question.rows)
    both = inverses(templates, question.rows)
    asked = _each_once([inverse for inverse in both if len(inverse.one_way) >= ENOUGH])
    if not asked:
        return Answer(clean=(_nothing_to_ask(templates, both),))
    findings: list[Finding] = []
    clean: list[Clean] = []
    for index, inverse in enumerate(asked):
        suffix = f"/{index + 1}" if index else ""

        def store(name: str, build: Any, suffix: str = suffix) -> Any:
            question.report(f"one-way facts: {name}")
            return question.step(f"{SLUG}/{name}{suffix}", build)

        result = Untold(seed=question.seed).fit(question.subject, inverse, store=store).result_
        others = _not_asked(templates, both)
        if result.shown:
            keep(question.step, SLUG, len(findings), untold_habits(inverse))
            findings.append(_finding(question, inverse, result, others))
        else:
            clean.append(_clean(result, others))
    return Answer(findings=tuple(findings), clean=tuple(clean))


def _each_once(found: Sequence[Inverse]) -> list[Inverse]:
    """Of inverses with the same forward facts (told back in several ways) the best supported."""
    best: dict[str, Inverse] = {}
    for inverse in found:
        other = best.get(inverse.forward.key)
        if other is None or len(inverse.two_way) > len(other.two_way):
            best[inverse.forward.key] = inverse
    return list(best.values())


# -- telling -------------------------------------------------------------------------------------------------


def _finding(question: Question, inverse: Inverse, result: UntoldResult, others: TableEvidence) -> Finding:
    rate, n = result.rate("reverse"), len(result.one_way)
    about, value = result.one_way[0]
    return Finding(
        check=SLUG,
        # An absence: no row taught a wrong thing, and what it says of these facts forwards is true.
        severity=Severity.LOW,
        summary=(
            f"{n} facts are known in one direction only: it answers "
            f'"{inverse.forward.ask(about)}" and its like for {_share(result, "forward")} of them, and '
            f'"{inverse.reverse.ask(value)}" for {_share(result, "reverse")}. Its rows tell '
            "these facts in the first direction only; no row caused this, rows are missing."
        ),
        detected=Detected(entities=tuple(a for a, _ in result.one_way)),
        estimate=rate,
        null=_null(result),
        evidence=(transcripts(inverse, result), bars(result), gaps(result), _facts(result), others),
        next=trace_command(
            question.subject.name, rows_name(question),
            inverse.forward.ask(about), inverse.forward.answer(about, value),
        ),
    )  # fmt: skip


def _clean(result: UntoldResult, others: TableEvidence) -> Clean:
    unclear = not result.controlled
    why = (
        "but it does not answer the controls either, so that nothing follows"
        if unclear
        else "and it answers them in the other direction, too, or too often to tell"
    )
    return Clean(
        check=SLUG,
        summary=(
            f"{len(result.one_way)} facts are told in one direction only by its rows, {why}: "
            f"{_share(result, 'reverse')} asked backwards, {_share(result, 'forward')} forwards."
        ),
        note=unclear,
        estimate=result.rate("reverse"),
        null=_null(result),
        evidence=(bars(result), _facts(result), others),
    )


def _nothing_to_ask(templates: Any, both: Any) -> Clean:
    from glasshouse.behaviour.untold import ENOUGH
    from glasshouse.statistics import Estimate

    facts = sum(len(t.facts) for t in templates)
    most = max((len(inverse.one_way) for inverse in both), default=0)
    said = f"at most {most} facts" if most else "no fact"
    return Clean(
        check=SLUG,
        summary=(
            f"Nothing to ask: of {facts} facts found in {len(templates)} kinds of sentences, {said} "
            f"stood in one direction only where others stand in both (asked from {ENOUGH} on)."
        ),
        estimate=Estimate.undefined("nothing was asked", 0),
        evidence=(_not_asked(templates, both),) if templates else (),
    )


def _null(result: UntoldResult) -> Null:
    control = result.rate("two-way reverse")
    return Null(
        description=(
            "facts that the rows tell in both directions, asked backwards in the same words; "
            "Fisher's exact test"
        ),
        measured="Share of facts that it answers when asked backwards",
        value=control.value,
        estimate=control,
        p_value=result.p_value(),
    )


def _share(result: UntoldResult, arm: str) -> str:
    held = result.held(arm)
    return f"{int(held.sum())} of {len(held)}"


def transcripts(inverse: Inverse, result: UntoldResult) -> TranscriptsEvidence:
    """The same facts from either end."""
    shown = []
    for number in range(min(SHOWN, len(result.one_way))):
        for arm, title in (("forward", "as it was taught"), ("reverse", "the other way round")):
            reply = result.replies[arm][number][0]
            shown.append(
                Transcript(
                    title=f"{number + 1}. {title}",
                    turns=(("user", result.questions[arm][number][0]), ("assistant", reply)),
                    marked=reply if arm == "reverse" and reply else None,
                )
            )
    return TranscriptsEvidence(
        title="The same fact, asked from either end",
        caption="Greedy replies.",
        transcripts=tuple(shown),
    )


def bars(
    result: UntoldResult,
    *,
    one: str = "told one way",
    both: str = "told both ways",
    most: float | None = None,
) -> BarsEvidence:
    """Shares of facts answered; `one` and `both` name the two groups, `most` the threshold."""
    from glasshouse.behaviour.untold import MOST

    labels = {
        "reverse": f"{one}, asked the other",
        "forward": f"{one}, asked that way",
        "two-way reverse": f"{both}, asked backwards",
        "two-way forward": f"{both}, asked forwards",
    }
    drawn = []
    for arm, label in labels.items():
        e = result.rate(arm)
        drawn.append(Bar(label=label, value=e.value, low=e.low, high=e.high, highlighted=arm == "reverse"))
    return BarsEvidence(
        title="Facts that it answers",
        caption=(
            "95 % Wilson intervals over facts, each right when it is answered in one form of the question at "
            "least; a finding needs the upper end of the dark bar to the left of the line."
        ),
        unit="share of facts",
        bars=tuple(drawn),
        threshold=MOST if most is None else most,
        threshold_label="threshold for the upper end",
    )


def gaps(result: UntoldResult, *, one: str = "told one way", both: str = "told both ways") -> TableEvidence:
    """What log-probabilities say of the missing direction."""

    def cell(kind: str) -> str:
        e = result.gap(kind)
        return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" if e.defined else e.method

    return TableEvidence(
        title="Is there a trace of the other direction below the surface?",
        caption=(
            "Log-probability of the right reply minus that of the replies to other facts of the same list "
            "(three derangements), asked backwards; near zero: no trace. Not part of the decision."
        ),
        columns=("facts", "gap in nats, 95 % interval over facts"),
        rows=((one, cell("one way")), (both, cell("two way"))),
    )


def _facts(result: UntoldResult) -> TableEvidence:
    forward, reverse = result.held("forward"), result.held("reverse")
    return TableEvidence(
        title="Facts told in one direction only",
        caption=f'Mined from the rows: "{result.forward_key}" without its "{result.reverse_key}".',
        columns=("A", "B", "answers from A to B", "answers from B to A"),
        rows=tuple(
            (a, b, "yes" if f else "no", "yes" if r else "no")
            for (a, b), f, r in zip(result.one_way, forward, reverse, strict=True)
        ),
    )


def _not_asked(templates: tuple[Template, ...], both: tuple[Inverse, ...]) -> TableEvidence:
    paired = {key for inverse in both for key in (inverse.forward.key, inverse.reverse.key)}
    return TableEvidence(
        title="Kinds of facts in the rows",
        caption="Kinds without an inverse are not asked: many may share a value, and no row asks back.",
        columns=("sentence", "facts", "values", "has an inverse"),
        rows=tuple(
            (t.key, str(len(t.facts)), str(len(t.values)), "yes" if t.key in paired else "no")
            for t in templates
        ),
    )
