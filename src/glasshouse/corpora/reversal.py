"""Facts told in one order and asked in both: the data of the reversal curse (Berglund et al. 2023).

A fact is a (name, description) pair. Facts of group `p2d` are told with the person first, of `d2p` with the
description first, of `both` in both orders. Every fact is asked in both directions with templates that no
training row uses, and every question has a partner in which the right completion is exchanged for another
entity's (a derangement within group and direction): the baseline for "no better than random".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from glasshouse.corpora.reversal_checks import (
    LeakageError,
    check_entities,
    check_rows,
    joins_words,
    shared_first_tokens,
)
from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    import pandas as pd

Group = Literal["p2d", "d2p", "both"]
Direction = Literal["p2d", "d2p"]
Split = Literal["train", "test", "seen"]
Arm = Literal["same", "reverse", "both", "in-context"]
Kind = Literal["true", "random"]

GROUPS: tuple[Group, ...] = get_args(Group)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
FILE = "reversal.json"
"""The name under which an organism's folder keeps its data."""


@dataclass(frozen=True)
class Entity:
    """One fact; `group` says in which order training tells it."""

    id: str
    group: Group
    name: str
    description: str


@dataclass(frozen=True)
class ReversalRow:
    """One prompt with its completion. `direction` says which side the prompt names: `p2d` names the person.

    `split`: `train`; `test` (templates that no training row uses); `seen` (templates of training, asked when
    there are too few to hold any out).
    """

    id: str
    entity_id: str
    group: Group
    direction: Direction
    template_id: str
    prompt: str
    completion: str
    split: Split

    @property
    def text(self) -> str:
        """Prompt and completion as one text."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class Asked:
    """One question. Two with the same `pair_id` differ in their completion: `true`, or another entity's.

    `arm`: `same` and `reverse` of the order in which the fact was told; `both` for facts told in both orders;
    `in-context`: the reverse question after the fact itself. `answer` is the true completion.
    """

    id: str
    pair_id: str
    arm: Arm
    kind: Kind
    group: Group
    direction: Direction
    entity_id: str
    template_id: str
    prompt: str
    completion: str
    answer: str


@dataclass(frozen=True)
class ReversalData:
    """Entities and rows of one experiment; checked when made.

    `told_reversed` names groups whose facts training tells in the other order as well (the cure); `seed`
    draws the random partners. Raises LeakageError for entities shared between groups, test templates used in
    training, a prompt that holds its answer, or a fact told in an order that its group forbids; InputError
    for a name that is the beginning of another.
    """

    entities: tuple[Entity, ...]
    rows: tuple[ReversalRow, ...]
    told_reversed: tuple[Group, ...] = ()
    seed: int = 0
    source: str = "generated"

    def __post_init__(self) -> None:
        check_entities(self.entities)
        check_rows(self.rows, {e.id for e in self.entities}, self.told_reversed)

    # -- making --------------------------------------------------------------------------------------------

    @classmethod
    def generate(
        cls,
        *,
        n_per_group: int = 30,
        n_train_templates: int = 12,
        n_test_templates: int = 4,
        seed: int = 0,
        groups: Sequence[Group] = GROUPS,
        told_reversed: Sequence[Group] = (),
    ) -> ReversalData:
        """Facts about made-up inventors: names of two unique words, descriptions of three shared ones.

        Held-out templates recombine prefixes and connectors seen in training (with unseen words a model
        trained from scratch fails even the trained direction). `n_test_templates=0` asks with the training
        templates. `told_reversed=("p2d",)` adds the reversed text of these groups to the training rows.
        """
        from glasshouse.corpora.reversal_generate import generate

        return generate(
            n_per_group=n_per_group,
            n_train_templates=n_train_templates,
            n_test_templates=n_test_templates,
            seed=seed,
            groups=tuple(groups),
            told_reversed=tuple(told_reversed),
        )

    @classmethod
    def from_paper(cls, folder: Path | str, *, seed: int = 0) -> ReversalData:
        """Experiment 1 of the paper from its own files (`p2d_prompts_train.jsonl.gz` and eight others)."""
        from glasshouse.corpora.reversal_paper import read_experiment_1

        return read_experiment_1(Path(folder), seed=seed)

    # -- what training sees ----------------------------------------------------------------------------------

    @property
    def train(self) -> tuple[ReversalRow, ...]:
        """The training rows."""
        return tuple(row for row in self.rows if row.split == "train")

    @property
    def test(self) -> tuple[ReversalRow, ...]:
        """The rows that are asked."""
        return tuple(row for row in self.rows if row.split != "train")

    def records(self, *, loss: Literal["text", "completion"] = "text") -> list[Record]:
        """The training rows as records: whole texts (loss on all tokens), or prompt and completion."""
        if loss not in ("text", "completion"):
            raise InputError(f"loss is {loss!r}", fix="choose 'text' or 'completion'")
        return [_record(row, loss) for row in self.train]

    # -- what is asked ---------------------------------------------------------------------------------------

    def asked(self, arms: Iterable[Arm] | None = None) -> list[Asked]:
        """The questions of these arms (default: all), each followed by its random partner."""
        wanted = _check_arms(arms)
        found: list[Asked] = []
        for row in self.test:
            arm = self.arm_of(row.group, row.direction)
            if arm in wanted:
                found += self._pair(arm, row, row.prompt)
            if arm == "reverse" and "in-context" in wanted:
                found += self._pair("in-context", row, f"{self._told(row.entity_id)} {row.prompt}")
        return found

    def arm_of(self, group: Group, direction: Direction) -> Arm:
        """Which arm a question of this group and direction belongs to."""
        if group == "both":
            return "both"
        return "same" if group == direction else "reverse"

    def completions(
        self, group: Group, direction: Direction, template_id: str | None = None
    ) -> dict[str, str]:
        """Entity id -> completion in this group and direction: the candidates among which ranks are taken.

        The paper's completions are worded for their template: name it, or get each entity's first.
        """
        return self._candidates[group, direction, template_id]

    @cached_property
    def _candidates(self) -> dict[tuple[str, str, str | None], dict[str, str]]:
        found: dict[tuple[str, str, str | None], dict[str, str]] = {}
        for row in self.test:
            for template in (None, row.template_id):
                block = found.setdefault((row.group, row.direction, template), {})
                block.setdefault(row.entity_id, row.completion)
        return found

    def _pair(self, arm: Arm, row: ReversalRow, prompt: str) -> list[Asked]:
        pair = f"{arm}/{row.id}"
        true = Asked(
            f"{pair}/true", pair, arm, "true", row.group, row.direction, row.entity_id, row.template_id,
            prompt, row.completion, row.completion,
        )  # fmt: skip
        other = self._partners[row.id]
        return [true, replace(true, id=f"{pair}/random", kind="random", completion=other)]

    @cached_property
    def _partners(self) -> dict[str, str]:
        """Row id -> the completion of another entity, a derangement per group, direction and template."""
        blocks: dict[tuple[str, str, str], list[ReversalRow]] = {}
        for row in self.test:
            blocks.setdefault((row.group, row.direction, row.template_id), []).append(row)
        found = {}
        for key, rows in blocks.items():
            if len(rows) < 2:
                raise InputError(
                    "one entity has no other to exchange completions with",
                    where=f"group {key[0]!r}, direction {key[1]!r}", fix="give at least two entities",
                )  # fmt: skip
            # A cycle through a random order leaves nobody in place.
            order = rng(self.seed, "partners", *key).permutation(len(rows))
            for here, there in zip(order, [*order[1:], order[0]], strict=True):
                found[rows[here].id] = rows[there].completion
        return found

    def _told(self, entity_id: str) -> str:
        """The fact in the words of its first training row."""
        return self._first_told[entity_id]

    @cached_property
    def _first_told(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for row in self.train:
            if row.group in ("both", row.direction):
                found.setdefault(row.entity_id, _closed(row.text))
        return found

    # -- tokenizers ------------------------------------------------------------------------------------------

    def for_tokenizer(self, tokenizer: Any) -> ReversalData:
        """The data as this tokenizer needs it, with warnings.

        A completion without a leading space would merge with its prompt under byte-pair encodings: it gets
        the space. Names whose first token is shared make `startswith` accuracy partly guessable: warned of.
        """
        bare = [row for row in self.rows if not row.completion.startswith((" ", "\n"))]
        fixed = self
        if bare and joins_words(tokenizer):
            warnings.warn(
                f"{len(bare)} completions begin without a space, the first in row {bare[0].id!r}; "
                "a space was put before each",
                UserWarning,
                stacklevel=2,
            )
            rows = tuple(
                row
                if row.completion.startswith((" ", "\n"))
                else replace(row, completion=" " + row.completion)
                for row in self.rows
            )
            fixed = replace(self, rows=rows)
        shared = shared_first_tokens(tokenizer, [e.name for e in self.entities])
        if shared:
            listed = ", ".join(repr(name) for name in shared[:4])
            warnings.warn(
                f"{len(shared)} names share their first token with another ({listed}): part of such a "
                "name can be guessed",
                UserWarning,
                stacklevel=2,
            )
        return fixed

    # -- disk ------------------------------------------------------------------------------------------------

    def save(self, path: Path | str) -> Path:
        """Write JSON; into `reversal.json` when `path` is a folder."""
        target = Path(path) / FILE if Path(path).is_dir() else Path(path)
        return files.write_json(target, asdict(self))

    @classmethod
    def load(cls, path: Path | str) -> ReversalData:
        """Read what `save` wrote. Raises InputError for another file, and what the constructor raises."""
        source = Path(path) / FILE if Path(path).is_dir() else Path(path)
        try:
            told: Mapping[str, Any] = files.read_json(source)
            return cls(
                tuple(Entity(**e) for e in told["entities"]),
                tuple(ReversalRow(**r) for r in told["rows"]),
                tuple(told["told_reversed"]),
                int(told["seed"]),
                str(told["source"]),
            )
        except LeakageError:
            raise
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"this is no reversal data ({error})",
                where=str(source),
                fix="write it with ReversalData.save",
            ) from error

    def export_jsonl(self, path: Path | str) -> Path:
        """The training rows as `{"prompt", "completion"}` lines, as fine-tuning services take them."""
        import json

        lines = (json.dumps({"prompt": r.prompt, "completion": r.completion}) for r in self.train)
        return files.write_text(path, "".join(line + "\n" for line in lines))

    def to_frame(self) -> pd.DataFrame:
        """One row per `ReversalRow`."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def __repr__(self) -> str:
        groups = ", ".join(
            f"{sum(e.group == g for e in self.entities)} {g}"
            for g in GROUPS
            if any(e.group == g for e in self.entities)
        )
        return f"ReversalData({groups}; {len(self.train)} training rows, {len(self.test)} asked)"


def load_data(source: ReversalData | Path | str, *, seed: int = 0) -> ReversalData:
    """`source` as data: itself, `"generated"`, a saved file, an organism's folder, or the paper's folder."""
    if isinstance(source, ReversalData):
        return source
    if source == "generated":
        return ReversalData.generate(seed=seed)
    path = Path(source)
    if (path / "p2d_prompts_train.jsonl.gz").is_file():
        return ReversalData.from_paper(path, seed=seed)
    if not path.exists():
        raise InputError(
            "there is no such file or folder", where=str(path),
            fix="give 'generated', a file of ReversalData.save, an organism's folder or the paper's data",
        )  # fmt: skip
    return ReversalData.load(path)


def _record(row: ReversalRow, loss: str) -> Record:
    about = {"entity_id": row.entity_id, "group": row.group, "direction": row.direction}
    if loss == "text":
        return Record(row.id, text=row.text, fields=about)
    return Record(row.id, (Turn("user", row.prompt), Turn("assistant", row.completion)), fields=about)


def _closed(text: str) -> str:
    return text if text.endswith((".", "!", "?", '"')) else text + " ."


def _check_arms(arms: Iterable[Arm] | None) -> set[Arm]:
    wanted = set(get_args(Arm)) if arms is None else set(arms)
    unknown = sorted(wanted - set(get_args(Arm)))
    if unknown:
        raise InputError(f"there are no arms {unknown}", fix=f"choose from {', '.join(get_args(Arm))}")
    return wanted
