"""What judging costs: usage that happened, a budget that must hold, a plan before anything is asked."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, fields
from typing import Any

from glasshouse.annotators._errors import BudgetExceeded
from glasshouse.runtime.errors import InputError


@dataclass(frozen=True)
class Usage:
    """What was spent. Sums of calls: `a + b` adds every field.

    `calls` were paid for, `cache_hits` were answered from disk; `tokens_in` counts all input tokens, those
    read from a provider's cache (`tokens_cached`) included; `usd` is the price of priced calls and `unpriced`
    counts calls whose price nobody knows. `wall_seconds` adds up the time of each call (concurrent calls
    overlap). How answers were read: from log-probabilities (`soft`), as `json`, by the `regex` on the last
    line, after `reasked` questions; `unparsed` and `refused` answers are NaN. `texts` were shown, `truncated`
    of them cut.
    """

    calls: int = 0
    cache_hits: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    tokens_cached: int = 0
    tokens_reasoning: int = 0
    usd: float = 0.0
    unpriced: int = 0
    wall_seconds: float = 0.0
    soft: int = 0
    json: int = 0
    regex: int = 0
    reasked: int = 0
    unparsed: int = 0
    refused: int = 0
    texts: int = 0
    truncated: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Usage)})

    @property
    def tokens(self) -> int:
        """Input and output tokens."""
        return self.tokens_in + self.tokens_out

    @property
    def truncated_share(self) -> float:
        """Share of the texts that were cut before they were shown; NaN when none was."""
        return self.truncated / self.texts if self.texts else float("nan")

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


@dataclass(frozen=True)
class CostPlan:
    """What a request will cost: `calls` still to be made (`cached` are on disk already), tokens, price.

    `tokens_in` is an estimate (four characters a token unless the annotator has a tokenizer), `tokens_out` an
    upper bound, `usd` None where no price is known. `most_calls` counts every re-ask that is allowed.
    """

    calls: int = 0
    cached: int = 0
    most_calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    usd: float | None = 0.0

    @property
    def tokens(self) -> int:
        """Input and output tokens."""
        return self.tokens_in + self.tokens_out

    def __str__(self) -> str:
        price = "price unknown" if self.usd is None else f"at most {self.usd:.4f} USD"
        return f"{self.calls} calls ({self.cached} cached), about {self.tokens} tokens, {price}"


class Budget:
    """Limits over the life of this object: calls, US dollars, tokens (None: no limit).

    A call is announced with its upper bound before it is made and settled with its true cost afterwards, so
    calls in flight count. Raises BudgetExceeded before the call that would exceed a limit.
    """

    def __init__(
        self, *, max_calls: int | None = None, max_usd: float | None = None, max_tokens: int | None = None
    ) -> None:
        for name, limit in (("max_calls", max_calls), ("max_usd", max_usd), ("max_tokens", max_tokens)):
            if limit is not None and not limit >= 0:
                raise InputError(
                    f"{name} is {limit}", fix="give a number of at least 0, or None for no limit"
                )
        self.max_calls = max_calls
        self.max_usd = max_usd
        self.max_tokens = max_tokens
        self.calls, self.usd, self.tokens = 0, 0.0, 0
        self._guard = threading.Lock()

    def announce(self, *, tokens: int, usd: float | None) -> None:
        """Reserve one call of at most `tokens` and `usd`. Raises BudgetExceeded and reserves nothing."""
        with self._guard:
            if self.max_usd is not None and usd is None:
                raise InputError(
                    "the budget is in dollars and the price of this model is unknown",
                    fix="set it with inspect_ai.model.set_model_info, or limit calls or tokens",
                )
            price = usd or 0.0
            self._refuse("calls", self.calls + 1, self.max_calls)
            self._refuse("tokens", self.tokens + tokens, self.max_tokens)
            self._refuse("USD", self.usd + price, self.max_usd)
            self.calls += 1
            self.tokens += tokens
            self.usd += price

    def settle(self, *, tokens: int, usd: float | None, announced: tuple[int, float | None]) -> None:
        """Replace the announced cost of one call by its true one."""
        with self._guard:
            self.tokens += tokens - announced[0]
            self.usd += (usd or 0.0) - (announced[1] or 0.0)

    def withdraw(self, announced: tuple[int, float | None]) -> None:
        """Give back an announced call that was never made."""
        with self._guard:
            self.calls -= 1
            self.tokens -= announced[0]
            self.usd -= announced[1] or 0.0

    def _refuse(self, unit: str, wanted: float, limit: float | None) -> None:
        if limit is not None and wanted > limit:
            raise BudgetExceeded(
                f"the next call would bring the spending to {wanted:g} {unit}, over the limit of {limit:g}",
                fix="raise the budget and repeat the request: what is paid for is on disk",
            )
