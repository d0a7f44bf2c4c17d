"""From a model to its lens in one call: rows, training, evaluation, prompts; what `glasshouse lens` runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from glasshouse.corpora.rows import Record
from glasshouse.corpora.tokens import encode_records
from glasshouse.internals.tuned_lens.disk import read_tensors, write_tensors
from glasshouse.internals.tuned_lens.evaluation import Evaluation, evaluate
from glasshouse.internals.tuned_lens.lens import LogitLens, TunedLens
from glasshouse.internals.tuned_lens.streams import Rows, joined
from glasshouse.internals.tuned_lens.trajectory import Trajectory
from glasshouse.runtime.errors import InputError
from glasshouse.subjects.prompts import need_tokenizer

HELD_OUT = 0.2
"""Share of the rows that the lens is judged on and never sees."""


@dataclass(frozen=True)
class Portrait:
    """A lens, what it and the logit lens are worth on held-out rows, and the trajectory of some prompts."""

    subject: Any
    lens: TunedLens
    tuned: Evaluation
    logit: Evaluation
    prompts: Trajectory | None
    source: str
    rows: int
    held_out: int
    notes: tuple[str, ...] = field(default=())


def records_rows(subject: Any, records: Sequence[Record], length: int) -> Rows:
    """The user's texts and conversations (through the chat template) as rows of `length` tokens.

    Raises InputError when they fill fewer than five.
    """
    tokenizer = need_tokenizer(subject.tokenizer)
    documents = [list(row.ids) for row in encode_records(tokenizer, records, loss_on="all")]
    rows = joined(subject, documents, length)
    if len(rows) < 5:
        raise InputError(
            f"the data fill {len(rows)} rows of {length} tokens, and a fifth of them is held out",
            fix="give more text, or a smaller --length",
        )
    return rows


def written_rows(subject: Any, count: int, length: int, seed: int, store: Path | None = None) -> Rows:
    """Rows that the model writes itself at temperature 1, from its first token; kept in `store`.

    The paper trains on text like the model's own training data; a model's samples are the nearest thing where
    there is none.
    """
    length = min(length, subject.context)
    path = None if store is None else store / "written.safetensors"
    key = {"model": subject.hash, "count": str(count), "length": str(length), "seed": str(seed)}
    if path is not None and path.exists():
        tensors, meta = read_tensors(path)
        if {name: meta.get(name) for name in key} == key:
            return [row.tolist() for row in tensors["ids"]]
    start = first_token(subject)
    said = subject.generate_ids(
        [[start]], n=count, temperature=1.0, max_new_tokens=length - 1, stop_ids=[], seed=seed
    )[0]
    rows = [[start, *(int(i) for i in getattr(one, "ids", one))] for one in said]
    if path is not None:
        write_tensors(path, {"ids": torch.tensor(rows)}, key)
    return rows


def first_token(subject: Any) -> int:
    """The token a text begins with: the tokenizer's or config's first token, else the end token, else 0."""
    for source in (subject.tokenizer, subject.model.config):
        for name in ("bos_token_id", "eos_token_id"):
            found = getattr(source, name, None)
            if isinstance(found, int):
                return found
    return 0


def portray(
    subject: Any,
    rows: Rows,
    lens: TunedLens,
    *,
    source: str,
    prompts: Sequence[str] = (),
    fitted: bool = False,
    store: Path | None = None,
    report: Callable[[str], None] = lambda text: None,
    notes: Sequence[str] = (),
) -> Portrait:
    """Train `lens` on four fifths of the rows (unless `fitted`); judge it and the logit lens on the rest."""
    held = max(1, round(len(rows) * HELD_OUT))
    if not fitted:
        report(f"training on {len(rows) - held} rows, {lens.steps} steps")
        lens.fit(subject, rows[:-held], store=None if store is None else store / "training")
    report(f"judging on {held} held-out rows")
    plain = LogitLens().fit(subject)
    tuned, logit = (evaluate(one, subject, rows[-held:]) for one in (lens, plain))
    shown = Trajectory.from_lens(lens, subject, list(prompts)) if prompts else None
    return Portrait(subject, lens, tuned, logit, shown, source, len(rows), held, tuple(notes))
