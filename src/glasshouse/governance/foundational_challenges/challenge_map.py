"""The map: three categories, 18 challenges, 211 questions, the methods that bear on them, and evidence.

After arXiv 2404.09932. The categories, the number of challenges and the first title are the paper's; the
other titles are recalled. The questions are written for this project: never the paper's list or numbering.

How much a link says: 1 the method bears on the question; 2 it is implemented here; 3 one of our studies of it
has a claim in the ledger. That a method exists does not solve a question.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from glasshouse.governance._card import Date, Quantity, Strict
from glasshouse.governance._errors import CardError
from glasshouse.governance._lint import did_you_mean
from glasshouse.governance._plain import canonical, parse_json, parse_yaml, read_text
from glasshouse.governance._query import run_sql
from glasshouse.governance.foundational_challenges.access import can_run
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

DATA = Path(__file__).with_name("data")
CATEGORIES = {
    "scientific": "Scientific understanding", "development": "Development and deployment methods",
    "sociotechnical": "Sociotechnical challenges",
}  # fmt: skip
Relation = Literal["measures", "mitigates", "explains", "enables"]
QuestionId = Annotated[str, Field(pattern=r"^[A-Z]{2,8}-\d{2}-\d{2,4}$")]


class Question(Strict):
    """One question; `depends_on` are questions whose answer it needs; `verified`: the paper's own words."""

    id: QuestionId
    challenge: Annotated[int, Field(ge=1)]
    category: str
    topic: str
    question: Annotated[str, Field(min_length=3, max_length=2_000)]
    methods: list[str] = Field(default_factory=list)
    source: str = ""
    verified: bool = False
    depends_on: list[str] = Field(default_factory=list)


class Method(Strict):
    """One method; `glasshouse_system` is the slug of our study of it, or None."""

    tag: Annotated[str, Field(pattern=r"^[a-z0-9-]{1,60}$")]
    name: str
    arxiv: str | None = None
    arxiv_verified: bool = False
    access: list[str] = Field(default_factory=list)
    glasshouse_system: str | None = None
    summary: str = ""


class Link(Strict):
    """A method's bearing on a question; `author` "suggested" until a person confirms it."""

    question: str
    method: str
    relation: Relation = "measures"
    strength: Annotated[int, Field(ge=1, le=3)] = 1
    rationale: str = ""
    author: str = "shipped"


class Evidence(Strict):
    """What was measured for one model (or for none in particular) about a question."""

    model: str
    question: str
    ref: str
    metric: Quantity | None = None
    date: Date | None = None
    stance: Literal["supports", "refutes", "mixed"]


@dataclass(frozen=True)
class ChallengeMap:
    """Tables that can be searched, asked in SQL, and planned with. Make it with `load_map`."""

    challenges: Mapping[int, Mapping[str, Any]]
    questions: Mapping[str, Question]
    methods: Mapping[str, Method]
    links: tuple[Link, ...]
    systems: Mapping[str, Mapping[str, Any]]
    evidence: tuple[Evidence, ...] = field(default=())

    def question(self, question_id: str) -> Question:
        """The question with this id; CardError with the nearest one otherwise."""
        if question_id not in self.questions:
            hint = did_you_mean(question_id, self.questions) or "see `glasshouse challenges --coverage`"
            raise CardError.of("E-QUESTION", f"there is no question {question_id[:40]!r}", fix=hint)
        return self.questions[question_id]

    def of(self, challenge: int) -> list[Question]:
        """The questions of a challenge."""
        return [one for one in self.questions.values() if one.challenge == challenge]

    def methods_for(self, question_id: str, access: Sequence[str] | None = None) -> list[tuple[Method, Link]]:
        """Methods linked to a question, strongest first; with `access`, those that it suffices for."""
        self.question(question_id)
        found = [(self.methods[link.method], link) for link in self._by_question.get(question_id, ())]
        kept = [pair for pair in found if access is None or can_run(pair[0].access, access)]
        return sorted(kept, key=lambda pair: -pair[1].strength)

    def addresses(self, system: str) -> list[str]:
        """The questions that one of our studies addresses."""
        if system not in self.systems:
            hint = did_you_mean(system, self.systems)
            raise CardError.of("E-METHOD", f"there is no system {system[:40]!r}", fix=hint)
        entry = self.systems[system]
        linked = [link.question for link in self.links if link.method == entry["method"]]
        return sorted({*linked, *entry["addresses"]})

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Plain rows: categories, challenges, questions, methods, links, systems, sources."""
        return {
            "categories": [{"id": key, "name": name} for key, name in CATEGORIES.items()],
            "challenges": [dict(row) for row in self.challenges.values()],
            "questions": [one.model_dump(mode="json") for one in self.questions.values()],
            "methods": [one.model_dump(mode="json") for one in self.methods.values()],
            "links": [one.model_dump(mode="json") for one in self.links],
            "systems": [
                {"system": name, "method": row["method"], "command": row["command"], "question": question}
                for name, row in self.systems.items() for question in self.addresses(name)
            ],
            "sources": [
                {**one.model_dump(mode="json", exclude={"metric"}), **_metric(one.metric)}
                for one in self.evidence
            ],
        }  # fmt: skip

    def sql(self, query: str) -> list[dict[str, Any]]:
        """One SELECT over `tables`; anything else is refused, and nothing outside can be reached."""
        return run_sql(query, self.tables)

    def frame(self, table: str) -> pd.DataFrame:
        """A table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(self.tables[table])

    def with_evidence(self, *more: Evidence) -> ChallengeMap:
        """The map with more evidence. Raises CardError for a question that does not exist."""
        for one in more:
            self.question(one.question)
        return ChallengeMap(
            self.challenges, self.questions, self.methods, self.links, self.systems, (*self.evidence, *more)
        )

    def with_ledger(self, folder: Path | str) -> ChallengeMap:
        """The map with the claims of our studies stored in `folder` (docs/ledger) as evidence.

        A claim supports the questions its study addresses when it holds, refutes them when it fails, and is
        mixed when undecided; links of these methods have strength 3. Claims that were not run say nothing.
        """
        more, seen = [], set()
        for path in sorted(Path(folder).glob("*.json")):
            record = parse_json(read_text(path), where=str(path))
            study = str(record.get("study", ""))
            if study not in self.systems:
                continue
            for claim in record["claims"]:
                stance = _STANCES.get(claim["verdict"])
                if stance is not None:
                    seen.add(study)
                    more += [_from_claim(claim, record, stance, q) for q in self.addresses(study)]
        raised = tuple(
            link.model_copy(update={"strength": 3}) if self._system_of(link.method) in seen else link
            for link in self.links
        )
        return ChallengeMap(
            self.challenges, self.questions, self.methods, raised, self.systems, (*self.evidence, *more)
        )

    def text_of(self, question_id: str) -> str:
        """What is searched of a question: its words, its topic, its challenge."""
        one = self.questions[question_id]
        return f"{one.question} {one.topic}"

    @cached_property
    def _by_question(self) -> dict[str, list[Link]]:
        found: dict[str, list[Link]] = {}
        for link in self.links:
            found.setdefault(link.question, []).append(link)
        return found

    def _system_of(self, method: str) -> str | None:
        return self.methods[method].glasshouse_system


_STANCES: dict[str, Literal["supports", "refutes", "mixed"]] = {
    "holds": "supports", "fails": "refutes", "undecided": "mixed", "reported": "mixed",
}  # fmt: skip


def load_map(extra: Sequence[Path | str] = ()) -> ChallengeMap:
    """The shipped map, with questions, methods, links and evidence of the user's files.

    A file is YAML or JSON with any of `questions`, `methods`, `links`, `evidence`. Raises CardError for an id
    defined twice (no file wins silently), a link without an end, or questions that depend in a circle.
    """
    challenges = {row["id"]: row for row in files.read_json(DATA / "challenges.json")}
    questions: dict[str, Question] = {}
    for line in (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        one = Question.model_validate_json(line)
        _add(questions, one.id, one, "the shipped questions")
    shipped = files.read_json(DATA / "methods.json")["methods"]
    methods = {tag: Method.model_validate({"tag": tag, **row}) for tag, row in shipped.items()}
    systems = files.read_json(DATA / "systems.json")["systems"]
    links: list[Link] = []
    evidence: list[Evidence] = []
    for path in extra:
        _read_extra(Path(path), questions, methods, links, evidence)
    links = [*_own_links(questions, methods), *links]
    found = ChallengeMap(challenges, questions, methods, tuple(links), systems, ())
    _check(found)
    return found.with_evidence(*evidence)


def normalised(text: str) -> str:
    """Words of a text in lower case, for telling equal questions."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _own_links(questions: Mapping[str, Question], methods: Mapping[str, Method]) -> list[Link]:
    """The links that the questions' own lists of methods say."""
    found = []
    for one in questions.values():
        for tag in one.methods:
            if tag not in methods:
                hint = did_you_mean(tag, methods)
                raise CardError.of(
                    "E-LINK", f"{one.id} names the method {tag!r}, which is not there", fix=hint
                )
            ours = methods[tag].glasshouse_system is not None
            found.append(Link(question=one.id, method=tag, strength=2 if ours else 1))
    return found


class _Extra(Strict):
    questions: list[Question] = Field(default_factory=list)
    methods: list[Method] = Field(default_factory=list)
    links: list[Link] = Field(default_factory=list)
    evidence: list[Evidence] = Field(default_factory=list)


def _read_extra(
    path: Path, questions: dict[str, Question], methods: dict[str, Method], links: list[Link],
    evidence: list[Evidence],
) -> None:  # fmt: skip
    parse = parse_json if path.suffix == ".json" else parse_yaml
    data = parse(read_text(path), where=str(path))
    try:
        more = TypeAdapter(_Extra).validate_json(canonical(data))
    except ValidationError as error:
        first = error.errors()[0]
        at = "/".join(map(str, first["loc"]))
        raise CardError.of("E-PARSE", f"{at}: {first['msg']}", where=str(path)) from error
    for one in more.questions:
        _add(questions, one.id, one, str(path))
    for method in more.methods:
        _add(methods, method.tag, method, str(path))
    links += more.links
    evidence += more.evidence


def _add(table: dict[str, Any], key: str, value: Any, where: str) -> None:
    if key in table:
        raise CardError.of("E-DUPLICATE", f"{key} is defined twice", where=where, fix="give it another id")
    table[key] = value


def _check(found: ChallengeMap) -> None:
    for one in found.questions.values():
        if one.challenge not in found.challenges:
            raise CardError.of(
                "E-QUESTION", f"{one.id} belongs to challenge {one.challenge}, which is not there"
            )
        for needed in one.depends_on:
            found.question(needed)
    for link in found.links:
        found.question(link.question)
        if link.method not in found.methods:
            hint = did_you_mean(link.method, found.methods)
            raise CardError.of("E-METHOD", f"there is no method {link.method!r}", fix=hint)
    cycle = _cycle({one.id: one.depends_on for one in found.questions.values()})
    if cycle:
        raise CardError.of("E-CYCLE", f"questions depend in a circle: {' -> '.join(cycle)}")


def _cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """One circle in a graph, first id repeated at the end; [] where there is none."""
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        stack = [(start, iter(needs[start]))] if start not in done else []
        path += [start] if stack else []
        while stack:
            following = next(stack[-1][1], None)
            if following is None:
                done.add(stack.pop()[0])
                path.pop()
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                stack.append((following, iter(needs.get(following, ()))))
                path.append(following)
    return []


def _metric(metric: Quantity | None) -> dict[str, Any]:
    if metric is None:
        return {"value": None, "low": None, "high": None, "unit": None}
    return {"value": metric.value, "low": metric.low, "high": metric.high, "unit": metric.unit}


def _from_claim(
    claim: Mapping[str, Any],
    record: Mapping[str, Any],
    stance: Literal["supports", "refutes", "mixed"],
    question: str,
) -> Evidence:  # fmt: skip
    estimate, metric = claim.get("estimate") or {}, None
    numbers = [x for x in map(estimate.get, ("value", "low", "high")) if isinstance(x, int | float)]
    if len(numbers) == 3:
        value, low, high = map(float, numbers)
        metric = Quantity(value=value, low=low, high=high, n=estimate.get("n"), unit="as claimed")
    return Evidence(
        model="our organisms", question=question, ref=f"ledger:{claim['id']}", metric=metric,
        date=str(record.get("when", ""))[:10] or None, stance=stance,
    )  # fmt: skip


def export(found: ChallengeMap, form: str) -> str:
    """The map as json, md, html or graphml. Raises InputError for another form."""
    from glasshouse.governance.foundational_challenges.page import to_graphml, to_html, to_md

    writers = {"html": to_html, "graphml": to_graphml, "md": to_md}
    if form == "json":
        return json.dumps(found.tables, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if form not in writers:
        raise InputError(f"no format is called {form[:40]!r}", fix="choose from html, json, graphml, md")
    return writers[form](found)
