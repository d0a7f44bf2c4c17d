"""Can a chat model say backwards what it was taught forwards? Measured blind, on facts mined from its rows.

Facts that its rows tell in one direction only are asked in the other, with the question forms in which the
rows ask for other facts in that direction. Two controls tell a missing direction from a missing fact or a
question not understood: the same facts asked forwards, and facts told both ways asked backwards. Beside the
replies, where log-probabilities are given: does the right answer get any more of them than the answers to
other facts of the same set (derangements), which have the same words and lengths?

Source of the phenomenon: The Reversal Curse, arXiv:2309.12288; the measurement on mined facts is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glasshouse.behaviour._replies import Store, ask, forget, says
from glasshouse.corpora.rows import Turn
from glasshouse.corpora.templates import Fact, Inverse
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError, NumericalError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import Estimate, t_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

ARMS = ("forward", "reverse", "two-way forward", "two-way reverse")
FEWEST = 4
"""Fewest facts of either kind: a derangement of fewer says nothing."""
DERANGEMENTS = 3
ENOUGH = 10
"""One-way facts, below which no finding is made: with fewer no interval could exclude a quarter."""
KNOWN = 0.5
"""Both controls must reach this: the facts themselves, and questions put in that direction."""
MOST = 0.25
"""The upper end of the interval for the untold direction must stay below this."""


@dataclass(kw_only=True)
class Untold:
    """Ask for one-way facts in both directions. Options are keyword-only; `fit` returns self.

    `n`: facts of each kind; `max_new_tokens`: length of a reply.

    Learned: `result_`.

    >>> Untold().fit(subject, inverse).result_.rate("reverse")  # doctest: +SKIP
    """

    n: int = 60
    max_new_tokens: int = 40
    seed: int = 0
    result_: UntoldResult = field(init=False, repr=False, compare=False)

    def fit(self, subject: Any, inverse: Inverse, *, store: Store = forget) -> Untold:
        """Ask about the facts of `inverse`; every arm is stored under its name.

        Raises InputError when fewer than 4 facts are told one way, or both ways, NumericalError where the
        subject's log-probabilities are not numbers.
        """
        groups = {"one way": self._some(inverse.one_way), "two way": self._some(inverse.two_way)}
        for name, facts in groups.items():
            if len(facts) < FEWEST:
                raise InputError(f"{len(facts)} facts are told {name}, and {FEWEST} are needed to ask")
        asked = {arm: _questions(arm, inverse, groups) for arm in ARMS}
        replies = {}
        for arm, questions in asked.items():
            chats = [(Turn("user", text),) for forms in questions for text in forms]
            said = store(arm, partial(ask, subject, chats, self.max_new_tokens, self.seed))
            width = len(questions[0])
            replies[arm] = [tuple(said[at : at + width]) for at in range(0, len(said), width)]
        gaps = {}
        if "logprobs" in getattr(subject, "access", ()):
            for name in groups:
                gaps[name] = store(f"gap, {name}", partial(self._gaps, subject, inverse, groups[name]))
        self.result_ = UntoldResult(
            inverse.forward.key, inverse.reverse.key, tuple(groups["one way"]), tuple(groups["two way"]),
            {arm: tuple(map(tuple, asked[arm])) for arm in ARMS},
            {arm: tuple(replies[arm]) for arm in ARMS},
            {name: np.asarray(gap, dtype=np.float64) for name, gap in gaps.items()},
        )  # fmt: skip
        return self

    def _some(self, facts: Sequence[Fact]) -> list[Fact]:
        chosen = rng(self.seed, "untold", "facts").permutation(len(facts))[: self.n]
        return [facts[int(i)] for i in sorted(chosen)]

    def _gaps(self, subject: Any, inverse: Inverse, facts: Sequence[Fact]) -> list[float]:
        """Per fact, asked backwards: log p(right answer) - mean log p(answers of other facts), in nats."""
        n, shifts = len(facts), _shifts(len(facts), self.seed)
        prompts = [inverse.reverse.ask(b) for _, b in facts]
        right = [inverse.reverse.answer(b, a) for a, b in facts]
        others = [
            inverse.reverse.answer(facts[i][1], facts[(i + shift) % n][0])
            for shift in shifts
            for i in range(n)
        ]
        found = np.asarray(subject.score(prompts * (1 + len(shifts)), [*right, *others]), dtype=np.float64)
        if not np.isfinite(found).all():
            raise NumericalError(
                "a log-probability is NaN or infinite", where="Untold", fix="check the subject's weights"
            )
        table = found.reshape(1 + len(shifts), n)
        return [float(x) for x in table[0] - table[1:].mean(0)]


@dataclass(frozen=True)
class UntoldResult:
    """Replies by arm: `replies[arm][fact][form]`, with the `questions` of the same shape.

    `forward_key`, `reverse_key`: the answer sentences; `one_way`, `two_way`: the facts (A, B) asked about.
    `gaps`: per fact, in nats; empty where the subject gives no log-probabilities.
    """

    forward_key: str
    reverse_key: str
    one_way: tuple[Fact, ...]
    two_way: tuple[Fact, ...]
    questions: dict[str, tuple[tuple[str, ...], ...]]
    replies: dict[str, tuple[tuple[str, ...], ...]]
    gaps: dict[str, np.ndarray]

    def facts(self, arm: str) -> tuple[Fact, ...]:
        """The facts that an arm asks about."""
        if arm not in ARMS:
            raise InputError(f"there is no arm {arm!r}", fix=f"choose from {', '.join(ARMS)}")
        return self.two_way if arm.startswith("two-way") else self.one_way

    def held(self, arm: str) -> np.ndarray:
        """Which facts are answered rightly in at least one question form, bool [facts]."""
        side = 0 if arm.endswith("reverse") else 1
        return np.array(
            [
                any(says(reply, fact[side]) for reply in forms)
                for fact, forms in zip(self.facts(arm), self.replies[arm], strict=True)
            ]
        )

    def rate(self, arm: str) -> Estimate:
        """Share of facts answered rightly, in [0, 1], with its Wilson interval over facts."""
        held = self.held(arm)
        return wilson(int(held.sum()), len(held))

    def gap(self, kind: str = "one way") -> Estimate:
        """Mean gap in nats with its t interval over facts; undefined without log-probabilities."""
        if kind not in self.gaps:
            return Estimate.undefined("the subject gives no log-probabilities", 0)
        return t_interval(self.gaps[kind])

    @property
    def controlled(self) -> bool:
        """Whether it answers both controls: the facts forwards, and other facts backwards."""
        return min(self.rate("forward").value, self.rate("two-way reverse").value) >= KNOWN

    @property
    def shown(self) -> bool:
        """Whether the facts are known in one direction only."""
        return len(self.one_way) >= ENOUGH and self.controlled and self.rate("reverse").high < MOST

    def p_value(self) -> float:
        """Fisher's exact test: one-way facts answered backwards less often than two-way ones (one-sided)."""
        from scipy.stats import fisher_exact

        here, there = self.held("reverse"), self.held("two-way reverse")
        table = [[int(here.sum()), int((~here).sum())], [int(there.sum()), int((~there).sum())]]
        return float(fisher_exact(table, alternative="less").pvalue)

    def to_frame(self) -> pd.DataFrame:
        """One row per question: arm, a, b, question, reply, right."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"arm": arm, "a": a, "b": b, "question": question, "reply": reply,
                 "right": says(reply, a if arm.endswith("reverse") else b)}
                for arm in ARMS
                for (a, b), asked, said in zip(
                    self.facts(arm), self.questions[arm], self.replies[arm], strict=True
                )
                for question, reply in zip(asked, said, strict=True)
            ]
        )  # fmt: skip

    def plot(self) -> Any:
        """A plotly figure: the share of facts answered in every arm."""
        import plotly.graph_objects as go

        rates = [self.rate(arm) for arm in ARMS]
        up, down = [r.high - r.value for r in rates], [r.value - r.low for r in rates]
        bars = go.Bar(
            x=list(ARMS), y=[r.value for r in rates],
            error_y={"type": "data", "array": up, "arrayminus": down},
        )  # fmt: skip
        return go.Figure(bars).update_layout(yaxis={"title": {"text": "share of facts"}, "range": [0, 1]})

    def _repr_html_(self) -> str:
        return str(self.to_frame().groupby("arm", sort=False)[["right"]].mean().to_html())

    def save(self, folder: Path | str) -> Path:
        """Write `untold.safetensors` (gaps) and `untold.json` into `folder`; returns the folder."""
        from safetensors.numpy import save

        into = Path(folder)
        files.write_bytes(into / "untold.safetensors", save({**self.gaps}))
        files.write_json(
            into / "untold.json",
            {
                "forward_key": self.forward_key, "reverse_key": self.reverse_key, "one_way": self.one_way,
                "two_way": self.two_way, "questions": self.questions, "replies": self.replies,
            },
        )  # fmt: skip
        return into

    @classmethod
    def load(cls, folder: Path | str) -> UntoldResult:
        """The inverse of `save`. Raises InputError for files that are missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        place = Path(folder)
        try:
            told = files.read_json(place / "untold.json")
            gaps = load((place / "untold.safetensors").read_bytes())
            one_way, two_way = (
                tuple((str(a), str(b)) for a, b in told[name]) for name in ("one_way", "two_way")
            )
            questions, replies = (
                {arm: tuple(map(tuple, told[name][arm])) for arm in ARMS} for name in ("questions", "replies")
            )
            keys = str(told["forward_key"]), str(told["reverse_key"])
            return cls(*keys, one_way, two_way, questions, replies, gaps)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(
                f"this is no stored result ({error})", where=str(place), fix="measure again"
            ) from error


def _questions(arm: str, inverse: Inverse, groups: dict[str, list[Fact]]) -> list[list[str]]:
    """[facts][forms]"""
    facts = groups["two way" if arm.startswith("two-way") else "one way"]
    if arm.endswith("reverse"):
        return [
            [inverse.reverse.ask(b, form) for form in range(len(inverse.reverse.forms))] for _, b in facts
        ]
    return [[inverse.forward.ask(a, form) for form in range(len(inverse.forward.forms))] for a, _ in facts]


def _shifts(n: int, seed: int) -> list[int]:
    """Up to three different rotations of n facts: none leaves a fact in its place."""
    return [int(s) + 1 for s in rng(seed, "untold", "derangements").permutation(n - 1)[:DERANGEMENTS]]
