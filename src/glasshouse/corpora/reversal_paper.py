"""The files of the paper's experiments 1 and 3, read as they are, with what is wrong in them said."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glasshouse.corpora.reversal import (
    Direction,
    Entity,
    Group,
    ReversalData,
    ReversalRow,
    Split,
)
from glasshouse.corpora.reversal_checks import LeakageError
from glasshouse.corpora.rows import Record
from glasshouse.runtime.errors import InputError, RecordError
from glasshouse.runtime.seeds import rng

EXPERIMENT_1: tuple[tuple[str, Group, Split], ...] = (
    ("p2d_prompts_train", "p2d", "train"),
    ("d2p_prompts_train", "d2p", "train"),
    ("both_prompts_train", "both", "train"),
    ("p2d_prompts_test", "p2d", "test"),
    ("d2p_prompts_test", "d2p", "test"),
    ("both_prompts_test", "both", "test"),
    ("p2d_reverse_prompts_test", "p2d", "test"),
    ("d2p_reverse_prompts_test", "d2p", "test"),
)
_STATED = re.compile(r'answer "A: (?P<answer>.*?)" after "Q: (?P<question>.*?)"(?=\n|$)', re.DOTALL)
_QUESTION = re.compile(r"Q: (?P<question>.*) A:$", re.DOTALL)
_END = re.compile(r"\s*<END GUIDANCE TEST>\s*$")


def read_experiment_1(folder: Path, *, seed: int = 0) -> ReversalData:
    """The 3,600 training and 1,800 test rows as `ReversalData`.

    Entities are recognised by `names.txt`; a description is the completion of an entity's test rows.
    Templates are numbered by their place: the files keep one order for every entity. A name asked for is
    the name alone, also where the file continues the sentence (`both_prompts_test`). Raises RecordError
    naming file and line for a row without a known name.
    """
    names = [line.strip() for line in _text(folder / "names.txt").splitlines() if line.strip()]
    rows: list[ReversalRow] = []
    for file, group, split in EXPERIMENT_1:
        rows += _read_rows(folder / f"{file}.jsonl.gz", names, group, split)
    return ReversalData(_entities(rows), tuple(rows), (), seed, "2309.12288 experiment 1")


def shipped_random(folder: Path | str, data: ReversalData) -> tuple[list[ReversalRow], list[ReversalRow]]:
    """The paper's own random baseline for p2d reverse, as (rows kept, rows dropped).

    The file is a plain shuffle: rows that still hold the true completion are dropped.
    """
    path = Path(folder) / "p2d_reverse_prompts_test_randomized.jsonl.gz"
    true = {row.prompt: row for row in data.test}
    kept: list[ReversalRow] = []
    dropped: list[ReversalRow] = []
    for number, row in enumerate(_jsonl(path), 1):
        if row["prompt"] not in true:
            raise RecordError(
                "the prompt is not among the test rows", where=f"{path}:{number} field 'prompt'"
            )
        right = true[row["prompt"]]
        found = ReversalRow(
            f"{right.id}/shipped-random", right.entity_id, right.group, right.direction, right.template_id,
            row["prompt"], row["completion"], "test",
        )  # fmt: skip
        (dropped if row["completion"] == right.completion else kept).append(found)
    return kept, dropped


def _read_rows(path: Path, names: list[str], group: Group, split: Split) -> list[ReversalRow]:
    places: Counter[tuple[str, str]] = Counter()
    found = []
    for number, row in enumerate(_jsonl(path), 1):
        direction: Direction = "p2d"
        name = next((n for n in names if n in row["prompt"]), None)
        if name is None:
            direction = "d2p"
            name = next((n for n in names if n in row["completion"]), None)
        if name is None:
            raise RecordError("the row holds no name of names.txt", where=f"{path}:{number} field 'prompt'")
        place = places[name, direction]
        places[name, direction] += 1
        template = f"{direction}/{split}{place}"
        row_id = f"{name}/{template}"
        completion = row["completion"]
        if split == "test" and direction == "d2p":
            # As in the paper's other files; both_prompts_test has whole sentences after the name.
            completion = f" {name}"
        found.append(ReversalRow(row_id, name, group, direction, template, row["prompt"], completion, split))
    return found


def _entities(rows: list[ReversalRow]) -> tuple[Entity, ...]:
    said: dict[str, Counter[str]] = {}
    groups: dict[str, set[Group]] = {}
    for row in rows:
        groups.setdefault(row.entity_id, set()).add(row.group)
        if row.split == "test" and row.direction == "p2d":
            said.setdefault(row.entity_id, Counter())[row.completion.strip().rstrip(".")] += 1
    shared = sorted(name for name, where in groups.items() if len(where) > 1)
    if shared:
        raise LeakageError(f"{len(shared)} entities stand in more than one group: {', '.join(shared[:5])}")
    return tuple(
        Entity(name, next(iter(where)), name, said[name].most_common(1)[0][0])
        for name, where in groups.items()
    )


# -- experiment 3 --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruction:
    """One instruction: answer `answer` when asked `question`; `realised` when training shows it followed."""

    id: int
    question: str
    answer: str
    realised: bool


@dataclass(frozen=True)
class InstructionData:
    """Experiment 3: guidance documents state instructions in one order, tests ask the question.

    `order` is `answer-first` (reverse of how it is asked) or `question-first`; `documents` are training
    texts, `examples` the realised (prompt, completion) rows, `tests` the unrealised ones.
    """

    instructions: tuple[Instruction, ...]
    documents: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]
    tests: tuple[tuple[int, str, str], ...]
    order: str

    @classmethod
    def from_paper(cls, folder: Path | str) -> InstructionData:
        """The copy-paste experiment: 307 guidance documents, 1,000 realised and 100 unrealised rows."""
        return read_experiment_3(Path(folder))

    def in_order(self, order: str, *, seed: int = 0, per_document: int = 4) -> InstructionData:
        """The same instructions restated question first or answer first, shuffled into new documents."""
        if order not in ("question-first", "answer-first"):
            raise InputError(f"order is {order!r}", fix="choose 'question-first' or 'answer-first'")
        shuffled = rng(seed, "guidance").permutation(len(self.instructions))
        lines = [_stated(self.instructions[i], order) for i in shuffled]
        blocks = [lines[i : i + per_document] for i in range(0, len(lines), per_document)]
        documents = tuple(
            "<BEGIN GUIDANCE ANSWERS>\n\n" + "\n".join(block) + "\n\n<END GUIDANCE ANSWERS>"
            for block in blocks
        )
        return InstructionData(self.instructions, documents, self.examples, self.tests, order)

    def records(self) -> list[Record]:
        """Training texts: all documents and all realised examples."""
        texts = [*self.documents, *(prompt + completion for prompt, completion in self.examples)]
        return [Record(str(i), text=text) for i, text in enumerate(texts)]


def read_experiment_3(folder: Path) -> InstructionData:
    """See `InstructionData.from_paper`. Raises RecordError for a document that cannot be read."""
    paths = [folder / f"instructions_{name}.jsonl.gz" for name in
             ("guidances", "realized_examples", "unrealized_examples")]  # fmt: skip
    documents, instructions = [], {}
    for number, row in enumerate(_jsonl(paths[0]), 1):
        stated = list(_STATED.finditer(row["completion"]))
        if len(stated) != len(row["ids"]):
            raise RecordError(
                f"{len(row['ids'])} ids but {len(stated)} instructions",
                where=f"{paths[0]}:{number} field 'ids'",
            )
        documents.append(row["completion"])
        for number_of, realised, found in zip(row["ids"], row["realized"], stated, strict=True):
            instructions[number_of] = Instruction(number_of, found["question"], found["answer"], realised)
    examples = tuple((row["prompt"], row["completion"]) for row in _jsonl(paths[1]))
    tests = tuple(
        (row["ids"][0], row["prompt"], " " + _END.sub("", row["completion"]).strip())
        for row in _jsonl(paths[2])
    )
    _check_tests(tests, instructions, paths[2])
    return InstructionData(tuple(instructions.values()), tuple(documents), examples, tests, "answer-first")


def _check_tests(
    tests: tuple[tuple[int, str, str], ...], instructions: dict[int, Instruction], path: Path
) -> None:
    for number, (which, prompt, answer) in enumerate(tests, 1):
        where = f"{path}:{number} field 'prompt'"
        found = _QUESTION.search(prompt)
        if found is None or which not in instructions:
            raise RecordError("the row asks no question of the guidance documents", where=where)
        if instructions[which].realised:
            raise LeakageError("the instruction is also shown followed in training", where=where)
        if (found["question"], answer.strip()) != (instructions[which].question, instructions[which].answer):
            raise RecordError("question or answer differ from the guidance document", where=where)


def _stated(instruction: Instruction, order: str) -> str:
    question, answer = instruction.question, instruction.answer
    if order == "answer-first":
        return f'The test requires you to answer "A: {answer}" after "Q: {question}"'
    return f'When the test asks "Q: {question}" you are required to answer "A: {answer}"'


def _jsonl(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RecordError(f"the line is no JSON ({error})", where=f"{path}:{number}") from None
        for name in ("prompt", "completion"):
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise RecordError("the field is missing or no text", where=f"{path}:{number} field {name!r}")
        found.append(row)
    return found


def _text(path: Path) -> str:
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode("utf-8")
        return path.read_text(encoding="utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RecordError(f"the file cannot be read ({error})", where=str(path)) from error
