"""From a behaviour that a check found to what is asked of the rows: tokens for influence, words for BM25."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glasshouse.attribution.bm25 import bm25_scores
from glasshouse.attribution.guilty import Trace
from glasshouse.corpora.rows import IGNORE, Record, TokenRow
from glasshouse.corpora.tokens import encode_records
from glasshouse.evidence.behaviours import Behaviour, Said

PROMPTS = {"reply": 12, "contrast": 32, "facts": 12}
"""Prompts of each kind of behaviour that are traced."""


def trace_of(tokenizer: Any, behaviour: Behaviour, *, name: str = "") -> Trace:
    """The token rows to trace a behaviour with, labels on the last reply; `name` begins their ids."""
    n = PROMPTS[behaviour.kind]
    wanted, control = behaviour.wanted[:n], behaviour.control[:n]
    shows = _encode(tokenizer, f"{name} shows", wanted)
    ordinary = _encode(tokenizer, f"{name} ordinary", control)
    if behaviour.kind != "contrast":
        return Trace(shows, ordinary, by="pairs" if behaviour.kind == "facts" else "halves")
    shows_not = _encode(tokenizer, f"{name} shows, instead", wanted, instead=True)
    ordinary_not = _encode(tokenizer, f"{name} ordinary, instead", control, instead=True)
    return Trace(shows, ordinary, shows_not, ordinary_not, by="agreement")


def _encode(tokenizer: Any, name: str, said: Sequence[Said], *, instead: bool = False) -> list[TokenRow]:
    chats = [one.chat(one.instead if instead else one.reply) for one in said]
    records = [Record(id=f"{name} {i}", turns=chat) for i, chat in enumerate(chats)]
    return [_last_reply(row) for row in encode_records(tokenizer, records, loss_on="reply")]


def _last_reply(row: TokenRow) -> TokenRow:
    labelled = {i for i, label in enumerate(row.labels) if label != IGNORE}
    start = max((i for i in labelled if i - 1 not in labelled), default=0)
    return replace(row, labels=tuple(IGNORE if i < start else label for i, label in enumerate(row.labels)))


def lexical_ranking(rows: Any, behaviour: Behaviour) -> list[str]:
    """Row ids by BM25: mean over the prompts, or for facts the highest share of a prompt's best score."""
    if behaviour.trigger is not None:
        queries = [" ".join(mark) for mark in behaviour.marks]
    else:
        queries = [f"{said.turns[-1][1]} {said.reply}" for said in behaviour.wanted]
    scores = bm25_scores(queries, [record.plain for record in rows])
    if behaviour.kind == "facts":
        best = scores.max(1, keepdims=True)
        scores = scores / best.clip(min=1e-12)
        order = scores.max(0).argsort(kind="stable")[::-1]
    else:
        order = scores.mean(0).argsort(kind="stable")[::-1]
    return [rows[int(i)].id for i in order]
