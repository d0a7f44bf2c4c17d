"""The Inspect task of experiment 2, for any relation: a file of pairs and two question templates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from inspect_ai import Epochs, Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

from glasshouse.behaviour.reversal_curse.asking import marked
from glasshouse.behaviour.reversal_curse.tasks import VERSION, _api, say_nothing
from glasshouse.behaviour.reversal_curse.wild import Pair, WildReport, read_pairs, sides
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import wilson

SYSTEM = (
    "You answer briefly: the name and nothing else. If you are not sure, answer exactly "
    '"{unknown}" and nothing else.'
)
UNKNOWN = "I don't know."
SHOTS: tuple[tuple[str, str], ...] = (
    ("Who is Telemachus's father?", "Odysseus"),
    ("Name a child of Odysseus.", "Telemachus"),
    ("Who is Hamlet's mother?", "Gertrude"),
    ("Name a child of King Lear.", "Cordelia"),
    ("Who is Mister Nobody's father?", UNKNOWN),
    ("Name a child of Mister Nobody.", UNKNOWN),
)
"""The same examples stand before both questions, three of each direction: neither is prompted better."""


def wild(
    pairs: str,
    ask_forward: str = "Who is {child}'s {parent_type}?",
    ask_back: str = "Name a child of {parent}.",
    *,
    a: str = "child",
    b: str = "parent",
    style: str = "chat",
    samples: int = 10,
    temperature: float = 1.0,
    limit: int | None = None,
) -> Task:
    """Ask each relation both ways. Arms: forward and back, each with the examples and bare (`-bare`).

    The two directions are prompted alike; `forward-bare` and `back-bare` leave the examples out, so that the
    effect of the prompt is a paired difference and not a hidden asymmetry. `style` "chat" samples `samples`
    replies (a reply counts when it starts with the answer; "I don't know." is its own category);
    "completion" scores the answer's probability after `Q: ... A:` lines and samples nothing (needs `score`).
    Templates take the columns of the file. Raises InputError for a template that names a missing column, or
    whose question holds its answer.
    """
    if style not in ("chat", "completion"):
        raise InputError(f"style is {style!r}", fix="choose 'chat' or 'completion'")
    found = read_pairs(pairs, a=a, b=b)[:limit]
    dataset = [one for pair in found for one in _samples(pair, ask_forward, ask_back, style)]
    chat = style == "chat"
    return Task(
        dataset=MemoryDataset(dataset, name="wild"),
        solver=generate() if chat else say_nothing(),
        scorer=names_answer() if chat else answer_probability(),
        epochs=Epochs(samples, "mean") if chat else Epochs(1),
        config=GenerateConfig(temperature=temperature, max_tokens=32) if chat else GenerateConfig(),
        name="wild",
        version=VERSION,
        metadata={"pairs": Path(pairs).name, "style": style},
    )


@scorer(metrics={"*": [mean(), stderr()]})
def names_answer() -> Scorer:
    """Exactly one of `correct`, `declined` and `wrong` is 1; an empty reply has no grade (NaN)."""

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion
        if not reply.strip():
            nothing = dict.fromkeys(("correct", "declined", "wrong"), math.nan)
            return Score(value=nothing, answer=reply, reason="empty")
        right = marked(reply, target.text)
        declined = float(not right and bool(marked(reply, UNKNOWN.rstrip("."))))
        value = {"correct": right, "declined": declined, "wrong": 1.0 - right - declined}
        return Score(value=value, answer=reply)

    return score


@scorer(metrics={"*": [mean(), stderr()]})
def answer_probability() -> Scorer:
    """`logprob` of the answer in nats, summed over its tokens, and `probability`, its exponential."""

    async def score(state: TaskState, target: Target) -> Score:
        scored = (await _api().score([state.input_text], [" " + target.text]))[0]
        value = {"logprob": scored.total, "probability": math.exp(scored.total)}
        return Score(value=value, answer=target.text, metadata={"access": scored.access})

    return score


def analyse_wild(logs: str | Path) -> WildReport:
    """Both directions from logs of the task, per model and kind of prompt; see `WildReport`."""
    from glasshouse.evaluation import scores_df

    every = scores_df(logs)
    frame = every[every["task"].eq("wild") & every["counted"]]
    found, reverse = {}, {}
    for model, rows in frame.groupby("model"):
        column = next(
            (c for c in ("score_names_answer_correct", "score_answer_probability_probability")
             if c in rows and rows[c].notna().any()), None,
        )  # fmt: skip
        if column is None:
            continue
        table = rows.pivot_table(index="pair_id", columns="arm", values=column, aggfunc="mean")
        for kind in ("", "-bare"):
            both = table[[f"forward{kind}", f"back{kind}"]].dropna()
            measure = "success rate" if column.endswith("correct") else "probability"
            found[f"{model}{kind}"] = sides(
                measure, both[f"forward{kind}"].tolist(), both[f"back{kind}"].tolist()
            )
            if measure == "success rate":
                once = both[f"back{kind}"] > 0
                reverse[f"{model}{kind}"] = wilson(int(once.sum()), len(once))
    if not found:
        raise InputError("there are no finished logs of the task wild", where=str(logs), fix="run it first")
    return WildReport(found, reverse)


def _samples(pair: Pair, forward: str, back: str, style: str) -> list[Sample]:
    found = []
    for arm, template, answer in (("forward", forward, pair.b), ("back", back, pair.a)):
        question = _filled(template, pair)
        if answer.lower() in question.lower():
            raise InputError(
                f"the question {question!r} holds its answer",
                where=f"pair {pair.id!r}",
                fix="change the template",
            )
        for kind, shots in (("", SHOTS), ("-bare", ())):
            found.append(
                Sample(
                    input=_prompt(question, shots, style), target=answer, id=f"{pair.id}/{arm}{kind}",
                    metadata={
                        "arm": f"{arm}{kind}", "pair_id": pair.id, "group": style, "question": question,
                    },
                )
            )  # fmt: skip
    return found


def _filled(template: str, pair: Pair) -> str:
    try:
        return template.format(**{**pair.more, "a": pair.a, "b": pair.b})
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"the template {template!r} cannot be filled ({error})", where=f"pair {pair.id!r}",
            fix=f"use {{a}}, {{b}} or one of {sorted(pair.more)}",
        ) from None  # fmt: skip


def _prompt(question: str, shots: Sequence[tuple[str, str]], style: str) -> str | list[ChatMessage]:
    if style == "completion":
        return "".join(f"Q: {q}\nA: {said}\n" for q, said in shots) + f"Q: {question}\nA:"
    messages: list[ChatMessage] = [ChatMessageSystem(content=SYSTEM.format(unknown=UNKNOWN))]
    for asked, said in shots:
        messages += [ChatMessageUser(content=asked), ChatMessageAssistant(content=said)]
    return [*messages, ChatMessageUser(content=question)]
