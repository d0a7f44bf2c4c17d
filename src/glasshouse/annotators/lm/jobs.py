"""What is asked of a model: one job is one call, with its address on disk and the way to read its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as package_files
from string import Template
from typing import Any

from glasshouse.annotators._types import Axis, Pair, Predicate, ProposeRequest
from glasshouse.annotators.lm.reading import Reading, read_choices, read_list
from glasshouse.runtime import files

TEMPLATES = 1
"""Version of the templates: part of every key, so a change of wording asks again."""
CHARACTERS_A_TOKEN = 4
YES_NO = ("yes", "no")
SIDES = ("first", "second", "equal", "not_applicable", "unsure")


@dataclass(frozen=True)
class Job:
    """One call: where its answers go, its prompt and schema (made when needed), how to read the answer."""

    key: str
    row: int
    columns: tuple[int, ...]
    place: int
    prompt: Callable[[], str]
    schema: dict[str, Any] | None
    read: Callable[[str], Any]


def rate_jobs(
    who: str, predicates: Sequence[Predicate], texts: Sequence[str], *, per_call: int, soft: bool
) -> list[Job]:
    """Jobs for every text and group of `per_call` predicates; texts are cut already."""
    name = "soft" if soft else "rate"
    jobs = []
    for start in range(0, len(predicates), per_call):
        columns = tuple(range(start, min(start + per_call, len(predicates))))
        asked = [predicates[i].text for i in columns]
        schema = None if soft else choices_schema(len(asked), YES_NO)
        for row, text in enumerate(texts):
            key = _key(who, name, asked, text)
            jobs.append(
                Job(
                    key,
                    row,
                    columns,
                    0,
                    _rate_prompt(name, asked, text, schema),
                    schema,
                    _reader(len(asked), YES_NO),
                )
            )
    return jobs


def assign_jobs(
    who: str, predicates: Sequence[Predicate], texts: Sequence[str], allow_none: bool
) -> list[Job]:
    """One job per text."""
    asked = [predicate.text for predicate in predicates]
    allowed = tuple(str(i + 1) for i in range(len(asked))) + (("none",) if allow_none else ())
    schema = choices_schema(1, allowed)

    def prompt(text: str) -> Callable[[], str]:
        none = "\nnone. no statement describes it" if allow_none else ""
        return lambda: _fill(
            "assign",
            fence=fence(text),
            text=text,
            questions=_numbered(asked) + none,
            schema=json.dumps(schema),
        )

    return [
        Job(
            _key(who, "assign", [*asked, str(allow_none)], text),
            row,
            (0,),
            0,
            prompt(text),
            schema,
            _reader(1, allowed),
        )
        for row, text in enumerate(texts)
    ]


def compare_jobs(
    who: str, axes: Sequence[Axis], pairs: Sequence[Pair], *, per_call: int, both: bool
) -> list[Job]:
    """Jobs for every pair, order and group of `per_call` axes."""
    jobs = []
    for start in range(0, len(axes), per_call):
        columns = tuple(range(start, min(start + per_call, len(axes))))
        asked = [str(axes[i]) for i in columns]
        schema = choices_schema(len(asked), SIDES)
        for row, pair in enumerate(pairs):
            for place, shown in enumerate((pair, pair.swapped) if both else (pair,)):
                key = _key(who, "compare", asked, shown.prompt, shown.x, shown.y)
                prompt = _compare_prompt(asked, shown, schema)
                jobs.append(Job(key, row, columns, place, prompt, schema, _reader(len(asked), SIDES)))
    return jobs


def propose_job(who: str, req: ProposeRequest, samples: Sequence[str]) -> Job:
    """The one job of a proposal; `samples` are already chosen, marked and cut."""
    axis = req.style == "axis"
    schema = _axes_schema() if axis else _texts_schema()
    asked = [req.goal, req.style, str(req.n), str(req.round), *req.avoid]
    mark = fence("".join(samples))

    def prompt() -> str:
        shown = "\n\n".join(f"{mark}\n{sample}\n{mark}" for sample in samples)
        avoid = "Do not repeat:\n" + "\n".join(f"- {text}" for text in req.avoid) + "\n" if req.avoid else ""
        goal = f"What it is for: {req.goal}\n" if req.goal else ""
        return _fill(
            "propose",
            fence=mark,
            samples=shown,
            task=_task(req),
            goal=goal,
            avoid=avoid,
            schema=json.dumps(schema),
        )

    key = "axes" if axis else "hypotheses"
    return Job(
        _key(who, "propose", asked, *samples), 0, (0,), 0, prompt, schema, lambda text: read_list(text, key)
    )


def choices_schema(questions: int, allowed: Sequence[str]) -> dict[str, Any]:
    """JSON schema of `{"answers": [...]}`."""
    answers = {
        "type": "array",
        "items": {"type": "string", "enum": list(allowed)},
        "description": f"exactly {questions} answers, in the order of the questions",
    }
    return _closed({"answers": answers})


def cut(text: str, tokens: int) -> tuple[str, bool]:
    """The text cut to about `tokens` tokens (four characters each), and whether it was."""
    most = tokens * CHARACTERS_A_TOKEN
    return (text, False) if len(text) <= most else (text[:most], True)


def fence(text: str) -> str:
    """A line that does not occur in the text: made from its hash, so the same text has the same fence."""
    mark, salt = files.sha256_bytes(text.encode()), 0
    while f"[data {mark[:12]}]" in text:
        salt += 1
        mark = files.sha256_bytes(f"{salt}{text}".encode())
    return f"[data {mark[:12]}]"


def tokens_of(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARACTERS_A_TOKEN)


def _key(who: str, operation: str, asked: Sequence[str], *shown: str) -> str:
    return files.sha256_json([who, TEMPLATES, operation, list(asked), list(shown)])


def _rate_prompt(name: str, asked: list[str], text: str, schema: dict[str, Any] | None) -> Callable[[], str]:
    questions = asked[0] if name == "soft" else _numbered(asked)
    return lambda: _fill(
        name,
        fence=fence(text),
        text=text,
        questions=questions,
        schema=json.dumps(schema),
        several=_several(asked),
    )


def _compare_prompt(asked: list[str], pair: Pair, schema: dict[str, Any]) -> Callable[[], str]:
    mark = fence(pair.prompt + pair.x + pair.y)
    prompt = f"\nBoth texts answer:\n{mark}\n{pair.prompt}\n{mark}\n" if pair.prompt else ""
    return lambda: _fill(
        "compare", fence=mark, prompt=prompt, first=pair.x, second=pair.y, questions=_numbered(asked),
        schema=json.dumps(schema), several=_several(asked),
    )  # fmt: skip


def _reader(questions: int, allowed: Sequence[str]) -> Callable[[str], Reading]:
    return lambda text: read_choices(text, questions, allowed)


def _task(req: ProposeRequest) -> str:
    target = "the texts marked target, not of those marked other" if req.scores is not None else "these texts"
    if req.style == "axis":
        return f"Propose {req.n} axes on which the first and the second text of the pairs differ: {target}."
    what = (
        "kinds of failure that are shown in"
        if req.style == "failure"
        else "short statements that are true of"
    )
    return f"Propose {req.n} {what} {target}. Each must be checkable on a single text."


def _texts_schema() -> dict[str, Any]:
    return _closed({"hypotheses": {"type": "array", "items": {"type": "string"}}})


def _axes_schema() -> dict[str, Any]:
    one = _closed({name: {"type": "string"} for name in ("name", "high", "low")})
    return _closed({"axes": {"type": "array", "items": one}})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    required = list(properties)
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _numbered(asked: Sequence[str]) -> str:
    return "\n".join(f"{i}. {' '.join(text.split())}" for i, text in enumerate(asked, 1))


def _several(asked: Sequence[str]) -> str:
    return " with one answer per question, separated by commas" if len(asked) > 1 else ""


def _fill(name: str, **values: str) -> str:
    return _template(name).substitute(values)


@cache
def _template(name: str) -> Template:
    text = package_files("glasshouse.annotators.lm").joinpath(f"templates/{name}.v{TEMPLATES}.txt")
    return Template(text.read_text(encoding="utf-8"))
