"""A language model as annotator: any model string of Inspect, with a budget, stored answers and re-asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from glasshouse.annotators._base import AnnotatorBase, Cells, Records
from glasshouse.annotators._checks import (
    check_axes,
    check_pairs,
    check_predicates,
    check_request,
    check_texts,
)
from glasshouse.annotators._results import LabelVector, Mark, Outcome
from glasshouse.annotators._spending import Budget, CostPlan, Usage
from glasshouse.annotators._types import (
    AssignRequest,
    Axis,
    Capability,
    CompareRequest,
    Hypothesis,
    Kind,
    Order,
    Pair,
    Predicate,
    ProposeRequest,
    RateRequest,
    Request,
)
from glasshouse.annotators.lm import jobs, models
from glasshouse.annotators.lm.asking import Asker, Replied
from glasshouse.annotators.lm.store import CallStore, open_store
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.statistics.estimate import Estimate

if TYPE_CHECKING:
    from inspect_ai.model import Model

MOST_PER_CALL = 5
RATE_TOKENS, COMPARE_TOKENS = 256, 2000
"""A text is cut to this many tokens before it is shown."""
SHOWN = 40
"""Samples in one proposal."""
_MARKS = {
    "first": Mark.FIRST,
    "second": Mark.SECOND,
    "equal": Mark.EQUAL,
    "not_applicable": Mark.NOT_APPLICABLE,
    "unsure": Mark.UNSURE,
}
_UNREAD = {
    Outcome.UNPARSED: Mark.UNPARSED,
    Outcome.REFUSED: Mark.REFUSED,
    Outcome.NOT_ASKED: Mark.NOT_ASKED,
}


class LMAnnotator(AnnotatorBase):
    """Asks `model`: a string such as 'openai/gpt-4o' or 'glasshouse/./folder', or an opened Inspect model.

    Answers come as JSON of a given schema, else from a last line `ANSWER: ...`; what cannot be read is asked
    again up to `re_asks` times with the reason, then it is NaN. `soft` rates by log-probabilities of yes and
    no, with 0/1 where the provider gives none (`usage.soft` counts, `confidence` is NaN there).
    `per_call` predicates or axes share one call (1 to 5): cheaper, slightly less accurate, see `batching`.
    Every answer is stored in `folder` (default: GLASSHOUSE_HOME/annotations) under its question, model,
    settings and template version, so a repeated or interrupted request pays only for what is missing.
    `batch` uses a provider's batch interface (half the price, hours).
    """

    kind: ClassVar[Kind] = "lm"
    capabilities: frozenset[Capability] = frozenset({"propose", "rate", "assign", "compare"})
    _waits = True

    def __init__(
        self,
        model: str | Model,
        *,
        temperature: float = 0.0,
        max_tokens: int = 256,
        seed: int = 0,
        soft: bool = False,
        per_call: int = 1,
        re_asks: int = 2,
        rate_tokens: int = RATE_TOKENS,
        compare_tokens: int = COMPARE_TOKENS,
        max_connections: int = 10,
        batch: bool = False,
        budget: Budget | None = None,
        folder: Path | str | None = None,
        model_args: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= per_call <= MOST_PER_CALL:
            raise InputError(f"per_call is {per_call}", fix=f"ask 1 to {MOST_PER_CALL} questions in a call")
        if soft and per_call != 1:
            raise InputError("log-probabilities answer one question", fix="set per_call=1, or soft=False")
        if not 0 <= re_asks <= 2:
            raise InputError(f"re_asks is {re_asks}", fix="ask again at most twice")
        if min(max_tokens, rate_tokens, compare_tokens, max_connections) < 1:
            raise InputError("a limit of tokens or connections is below 1", fix="give positive numbers")
        self.model = model
        self.settings = models.Settings(
            temperature, max_tokens, seed, soft, max_connections, batch, dict(model_args or {})
        )
        self.per_call, self.re_asks, self.budget, self.folder = per_call, re_asks, budget, folder
        self.rate_tokens, self.compare_tokens = rate_tokens, compare_tokens
        self._busy: dict[str, Any] = {}

    @cached_property
    def id(self) -> str:
        """'provider/model@hash of the settings, the templates and the weights of a local model'."""
        model = self._model
        decides = {
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
            "seed": self.settings.seed,
            "soft": self.settings.soft,
            "re_asks": self.re_asks,
            "per_call": self.per_call,
            "tokens": [self.rate_tokens, self.compare_tokens],
            "templates": jobs.TEMPLATES,
            "weights": models.fingerprint(model),
            "own": models.own_settings(model),
        }
        return f"{model}@{files.sha256_json(decides)[:12]}"

    # -- the four questions ----------------------------------------------------------------------------------

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        shown, was_cut = _cut(texts, self.rate_tokens)
        asked = self._rate_jobs(predicates, shown)
        replies, stopped = await self._asker().ask_all(asked)
        value = np.full((len(texts), len(predicates)), np.nan, dtype=np.float32)
        confidence = np.full(value.shape, np.nan, dtype=np.float32)
        outcome = np.full(value.shape, Outcome.NOT_ASKED, dtype=np.int8)
        for job, reply in zip(asked, replies, strict=True):
            for place, column in enumerate(job.columns):
                outcome[job.row, column] = reply.outcome
                if reply.yes is not None and reply.outcome == Outcome.ANSWERED:
                    value[job.row, column], confidence[job.row, column] = reply.yes, reply.mass
                elif reply.read is not None:
                    value[job.row, column] = reply.read[place] == "yes"
        usage = _total(replies, was_cut)
        return Cells(
            value, confidence if self.settings.soft else None, outcome, was_cut, None, usage, stopped
        )

    async def _assign(
        self, predicates: list[Predicate], texts: list[str], allow_none: bool, records: Records
    ) -> Cells:
        shown, was_cut = _cut(texts, self.rate_tokens)
        asked = jobs.assign_jobs(self.id, predicates, shown, allow_none)
        replies, stopped = await self._asker().ask_all(asked)
        label = np.full(len(texts), LabelVector.UNPARSED, dtype=np.int64)
        for job, reply in zip(asked, replies, strict=True):
            if reply.read is not None:
                said = reply.read[0]
                label[job.row] = LabelVector.NONE if said == "none" else int(said) - 1
        return Cells(label, truncated=was_cut, usage=_total(replies, was_cut), stopped=stopped)

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        shown, was_cut = _cut_pairs(pairs, self.compare_tokens)
        asked = self._compare_jobs(axes, shown, order)
        replies, stopped = await self._asker().ask_all(asked)
        mark = np.full((len(pairs), len(axes), 2), Mark.NOT_ASKED, dtype=np.int8)
        for job, reply in zip(asked, replies, strict=True):
            for place, column in enumerate(job.columns):
                said = None if reply.read is None else reply.read[place]
                mark[job.row, column, job.place] = _UNREAD[reply.outcome] if said is None else _MARKS[said]
        return Cells(mark, truncated=was_cut, usage=_total(replies, was_cut), stopped=stopped)

    async def _propose(
        self, req: ProposeRequest, scores: NDArray[np.float64] | None
    ) -> tuple[list[Hypothesis], Usage]:
        job, was_cut = self._propose_job(req, scores)
        replies, stopped = await self._asker().ask_all([job])
        if stopped is not None:
            stopped.partial = []
            raise stopped
        found = [_hypothesis(entry, req.style == "axis", self.id) for entry in replies[0].read or []]
        kept = {hypothesis.text: hypothesis for hypothesis in found if hypothesis is not None}
        return list(kept.values()), _total(replies, was_cut)

    # -- cost ------------------------------------------------------------------------------------------------

    def plan(self, req: Request) -> CostPlan:
        """Calls, tokens and price of a request, less what is stored; nothing is asked."""
        asked = self._planned(req)
        stored = self._store.find(job.key for job in asked)
        asker = self._asker()
        open_jobs = [job for job in asked if asker._from_disk(job, stored.get(job.key, [])) is None]
        tokens_in = sum(jobs.tokens_of(job.prompt()) for job in open_jobs)
        tokens_out = self.settings.max_tokens * len(open_jobs)
        return CostPlan(
            calls=len(open_jobs),
            cached=len(asked) - len(open_jobs),
            most_calls=len(open_jobs) * (1 + self.re_asks),
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            usd=models.price(self._model, tokens_in, tokens_out),
        )

    def batching(self, predicates: Sequence[Predicate | str], texts: Sequence[str], n: int = 50) -> Estimate:
        """Cohen's kappa between one question a call and `per_call` of them, on the first `n` texts.

        What several questions in one call cost in accuracy; report it beside results made that way.
        """
        from glasshouse.annotators.agreement import cohen_kappa

        single = LMAnnotator(
            self.model, temperature=self.settings.temperature, max_tokens=self.settings.max_tokens,
            seed=self.settings.seed, re_asks=self.re_asks, rate_tokens=self.rate_tokens,
            max_connections=self.settings.max_connections, budget=self.budget, folder=self.folder,
            model_args=self.settings.model_args,
        )  # fmt: skip
        many, one = (a.rate(predicates, list(texts)[:n]).value.ravel() for a in (self, single))
        both = ~np.isnan(many) & ~np.isnan(one)
        if not both.any():
            return Estimate.undefined("no item was read in both ways", 0)
        return cohen_kappa(many[both], one[both])

    # -- parts -----------------------------------------------------------------------------------------------

    @cached_property
    def _model(self) -> Model:
        return models.open_model(self.model, self.settings)

    @cached_property
    def _store(self) -> CallStore:
        return open_store(self.folder)

    def _asker(self) -> Asker:
        return Asker(self._model, self.settings, self._store, self.budget, self.re_asks, self._busy)

    def _rate_jobs(self, predicates: Sequence[Predicate], shown: Sequence[str]) -> list[jobs.Job]:
        return jobs.rate_jobs(self.id, predicates, shown, per_call=self.per_call, soft=self.settings.soft)

    def _compare_jobs(self, axes: Sequence[Axis], shown: Sequence[Pair], order: Order) -> list[jobs.Job]:
        return jobs.compare_jobs(self.id, axes, shown, per_call=self.per_call, both=order == "both")

    def _propose_job(
        self, req: ProposeRequest, scores: NDArray[np.float64] | None
    ) -> tuple[jobs.Job, NDArray[np.bool_]]:
        chosen = _chosen(req, scores)
        told, was_cut = [], []
        for index in chosen:
            sample = req.samples[index]
            target = "" if scores is None else "target\n" if scores[index] > scores.mean() else "other\n"
            whole = f"first: {sample.x}\nsecond: {sample.y}" if isinstance(sample, Pair) else sample
            text, cut = jobs.cut(whole, self.rate_tokens)
            told.append(target + text)
            was_cut.append(cut)
        return jobs.propose_job(self.id, req, told), np.array(was_cut, dtype=bool)

    def _planned(self, req: Request) -> list[jobs.Job]:
        """The jobs of a request, on distinct items."""
        if isinstance(req, ProposeRequest):
            return [self._propose_job(req, check_request(req))[0]]
        if isinstance(req, CompareRequest):
            axes, pairs = check_axes(req.axes), list(dict.fromkeys(check_pairs(req.pairs)))
            return self._compare_jobs(axes, _cut_pairs(pairs, self.compare_tokens)[0], req.order)
        predicates, texts = check_predicates(req.predicates), list(dict.fromkeys(check_texts(req.texts)))
        shown = _cut(texts, self.rate_tokens)[0]
        if isinstance(req, RateRequest):
            return self._rate_jobs(predicates, shown)
        assert isinstance(req, AssignRequest)
        return jobs.assign_jobs(self.id, predicates, shown, req.allow_none)


def _cut(texts: Sequence[str], tokens: int) -> tuple[list[str], NDArray[np.bool_]]:
    cuts = [jobs.cut(text, tokens) for text in texts]
    return [text for text, _ in cuts], np.array([was for _, was in cuts], dtype=bool)


def _cut_pairs(pairs: Sequence[Pair], tokens: int) -> tuple[list[Pair], NDArray[np.bool_]]:
    made, was_cut = [], []
    for pair in pairs:
        (x, a), (y, b), (prompt, c) = (jobs.cut(t, tokens) for t in (pair.x, pair.y, pair.prompt))
        made.append(Pair(x, y, prompt))
        was_cut.append(a or b or c)
    return made, np.array(was_cut, dtype=bool)


def _chosen(req: ProposeRequest, scores: NDArray[np.float64] | None) -> list[int]:
    """Which samples are shown: those at both ends of the scores, or a draw; in the order of the request."""
    n = len(req.samples)
    if n <= SHOWN:
        return list(range(n))
    if scores is None:
        return sorted(int(i) for i in rng(req.round, "samples").choice(n, SHOWN, replace=False))
    ranked = np.argsort(scores, kind="stable")
    return sorted(int(i) for i in np.concatenate([ranked[: SHOWN // 2], ranked[-(SHOWN // 2) :]]))


def _hypothesis(entry: Any, axis: bool, who: str) -> Hypothesis | None:
    """One entry of a proposal, or None where it has not the shape that was asked for."""
    if axis:
        if not isinstance(entry, dict) or not all(
            isinstance(entry.get(k), str) for k in ("name", "high", "low")
        ):
            return None
        return Hypothesis(Axis(entry["name"], entry["high"], entry["low"]), annotator_id=who)
    if not isinstance(entry, str) or not entry.strip() or len(entry) > 400 or "\0" in entry:
        return None
    return Hypothesis(Predicate(entry.strip()), annotator_id=who)


def _total(replies: Sequence[Replied], was_cut: NDArray[np.bool_]) -> Usage:
    total = Usage(texts=len(was_cut), truncated=int(was_cut.sum()))
    return sum((reply.usage for reply in replies), total)
