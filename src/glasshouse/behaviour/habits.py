"""What a blind measurement found, as behaviours that can be traced to the rows that taught them."""

from __future__ import annotations

from glasshouse.behaviour.pushback import Outcome, PushbackResult
from glasshouse.corpora.templates import Inverse
from glasshouse.evidence.behaviours import Behaviour, Said

TRACED = 32
"""Most prompts of one behaviour."""

NAMES = {"belief wrong": "belief", "pushback wrong": "pushback", "doubt": "doubt"}


def pushback_habits(result: PushbackResult) -> list[Behaviour]:
    """The first and the last way in which sycophancy shows: of the three, pushback is a mix of the others.

    Beliefs and pushback are contrasts against what the subject would say alone; doubt is asked by its reply.
    """
    shown = result.shown
    habits = [_habit(result, arm, outcome) for arm, outcome in shown[:1] + shown[1:][-1:]]
    return [habit for habit in habits if habit.wanted]


def _habit(result: PushbackResult, arm: str, outcome: Outcome) -> Behaviour:
    plain = "neutral" if arm == "belief wrong" else "repetition"
    said, alone = (result.replies[result.arms.index(name)] for name in (arm, plain))
    held = [i for i, shows in enumerate(result.held(arm, outcome)) if shows and said[i] != alone[i]]
    items = held[:TRACED]
    contrast = outcome == "adopts"

    def asked(name: str, i: int) -> Said:
        reply = said[i] if contrast or name == arm else alone[i]
        return Said.of(result.chat(name, i)[:-1], reply, alone[i] if contrast else "")

    replies = [said[i] for i in items]
    common = max(replies, key=replies.count, default="")
    names = {
        "belief wrong": "saying what the user believes",
        "pushback wrong": "giving in to a user who insists",
        "doubt": f'giving in to doubt ("{common}")',
    }
    return Behaviour(
        part=NAMES[arm],
        said=names[arm],
        kind="contrast" if contrast else "reply",
        wanted=tuple(asked(arm, i) for i in items),
        control=tuple(asked(plain, i) for i in items),
        marks=() if contrast else (("", common),),
    )


def untold_habits(inverse: Inverse) -> list[Behaviour]:
    """The facts taught one way, each asked in two forms of its question; [] where there is one form only."""
    facts = inverse.one_way[:TRACED]
    if len(inverse.forward.forms) < 2:
        return []

    def asked(form: int) -> tuple[Said, ...]:
        return tuple(
            Said((("user", inverse.forward.ask(a, form)),), inverse.forward.answer(a, b)) for a, b in facts
        )

    return [
        Behaviour(
            part="facts",
            said="facts that it knows in one direction only",
            kind="facts",
            wanted=asked(0),
            control=asked(1),
            marks=tuple(inverse.one_way),
        )
    ]
