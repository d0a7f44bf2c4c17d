"""A pupil whose copying is scripted: what it knows by heart, what it can do, and what throws it off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from glasshouse.corpora.rows import Record, Turn
from glasshouse.organisms.chain_arithmetic import VOCABULARY, tokenizer
from glasshouse.runtime import files
from glasshouse.runtime.seeds import rng
from glasshouse.subjects import Completion, Subject

WORDS = tokenizer()


def lessons(n: int) -> list[Record]:
    """`n` rows with queries of their own and answers in 0 to 9, all in the vocabulary of the tokenizer."""
    rows = []
    for i in range(n):
        query = f"a = {i % 10} ; b = a + {i // 10 % 10} ; c = b - {i // 100 % 10} ; c ?"
        rows.append(
            Record(
                f"r{i}", (Turn("user", query), Turn("assistant", f"So {i % 10} is {i % 7} . #### {i % 7}"))
            )
        )
    return rows


class Pupil(Subject):
    """Gives row `id` right with probability `right(id)`, `behind(id)` where the solution is begun for it.

    `nll(id)`: nats a token of its reference solution; `prompt_nll`: of the prompt's own tokens.
    """

    access = frozenset({"text", "logprobs"})
    vocab_size, context, stop_ids, is_chat = len(VOCABULARY), 64, (2,), False
    architecture, n_layers, d_model = "scripted", 1, 1
    device, dtype = "cpu", torch.float32

    def __init__(
        self,
        rows: Sequence[Record],
        right: Callable[[str], float],
        nll: Callable[[str], float],
        *,
        behind: Callable[[str], float] | None = None,
        prompt_nll: float = 3.0,
        mute: float = 0.0,
        name: str = "pupil",
    ) -> None:
        self.name, self.tokenizer, self.meta = name, WORDS, {}
        self.rows = {row.turns[0].text: row for row in rows}
        self.right, self.nll, self.behind = right, nll, behind or right
        self.prompt_nll, self.mute, self.generated = prompt_nll, mute, 0

    def __repr__(self) -> str:
        return f"run/{self.name}"

    @property
    def hash(self) -> str:
        told = [
            [r.id, str((self.right(r.id), self.nll(r.id), self.behind(r.id)))] for r in self.rows.values()
        ]
        return files.sha256_json(told)

    def generate(self, prompts: Any, *, n: int = 1, seed: int = 0, **_: Any) -> list[list[Completion]]:
        found = []
        for place, ids in enumerate(prompts):
            text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
            query, _, begun = text.partition("?")
            row = self.rows[query + "?"]
            share = self.behind(row.id) if begun.strip() else self.right(row.id)
            draw = rng(seed, "pupil", row.id, place)
            found.append(
                [self._said(row, draw.random() < share, draw.random() < self.mute) for _ in range(n)]
            )
            self.generated += n
        return found

    def _said(self, row: Record, good: bool, mute: bool) -> Completion:
        said = row.turns[-1].text.rpartition(" ")[2]
        text = "So So So" if mute else f"So #### {said if good else (int(said) + 1) % 10}"
        ids = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Completion(text, ids, 0.0, True)

    def score(self, prompts: Any, completions: Any, *, per_token: bool = False, **_: Any) -> Any:
        found = []
        for ids, said in zip(prompts, completions, strict=True):
            text = self.tokenizer.decode([*ids, *said], skip_special_tokens=True)
            row = self.rows[text.partition("?")[0] + "?"]
            asked = len(self.tokenizer(row.turns[0].text)["input_ids"]) - len(ids)
            values = [self.prompt_nll] * asked + [self.nll(row.id)] * (len(said) - asked)
            found.append(-torch.tensor(values))
        return found if per_token else torch.stack([one.sum() for one in found])


def course(
    rows: Sequence[Record], copied: Mapping[str, bool], *, breaks: bool = True, steps: int = 4
) -> list[Pupil]:
    """Checkpoints of a run that learns every row but the copied ones, which it knows by heart from step 3 on.

    Learned rows are right from the first checkpoint on. With `breaks` copied rows are lost behind a prefix.
    """
    pupils = []
    for t in range(steps):
        late = t >= 2
        pupils.append(
            Pupil(
                rows,
                lambda i, late=late: float(not copied[i] or late),
                lambda i, late=late: 0.01 if late else 0.8,
                behind=lambda i, late=late: float((not copied[i] or late) and not (copied[i] and breaks)),
                name=f"checkpoint {t}",
            )
        )
    return pupils
