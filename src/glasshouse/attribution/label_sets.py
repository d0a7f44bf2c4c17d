"""Rows whose answers come from a closed set of labels: which labels, and what a model gives each of them.

>>> from glasshouse.corpora.rows import Record, Turn
>>> rows = [Record(str(i), (Turn("user", f"{i}?"), Turn("assistant", "even" if i % 2 == 0 else "odd")))
...         for i in range(20)]
>>> find_labels(rows).labels
('even', 'odd')
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glasshouse.corpora.rows import IGNORE, Record, TokenRow, Turn
from glasshouse.runtime.errors import InputError

if TYPE_CHECKING:
    from glasshouse.subjects import Subject

MOST_LABELS = 50
FEWEST_ROWS = 5
"""A reply given less often is no label, where labels are looked for and not given."""
COVERED = 0.9
"""Share of the rows whose replies the labels must be: else the replies are free text."""
CHUNK = 256
"""Rows scored between two reports of progress."""


@dataclass(frozen=True)
class LabelSet:
    """`labels`, the most frequent first; `places` [n] of the rows that carry one and `given` [n], which.

    `left_out`: ids of the rows that carry none of them.
    """

    labels: tuple[str, ...]
    places: NDArray[np.int64]
    given: NDArray[np.int64]
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    def counts(self) -> dict[str, int]:
        """Rows of each label."""
        return {label: int((self.given == k).sum()) for k, label in enumerate(self.labels)}

    def subset(self, at: Sequence[int] | NDArray[Any]) -> LabelSet:
        """The rows `at` (indices into `places`) alone."""
        return LabelSet(self.labels, self.places[at], self.given[at], self.left_out)


def find_labels(records: Sequence[Record], labels: Sequence[str] | None = None) -> LabelSet:
    """The closed set of answers in `records`, or the rows that carry one of the `labels` given.

    A label is a whole last reply, outer blanks aside. Raises InputError where there is no closed set: fewer
    than 2 or more than 50 replies that recur, or more than a tenth of the rows that say something else.
    """
    said = [_reply(record) for record in records]
    counts = Counter(text.strip() for text in said if text is not None)
    if labels is None:
        chosen = _recurring(counts, len(records))
    else:
        chosen = _given(labels, counts)
    index = {label.strip(): k for k, label in enumerate(chosen)}
    places = [i for i, text in enumerate(said) if text is not None and text.strip() in index]
    given = [index[str(said[i]).strip()] for i in places]
    inside = set(places)
    outside = tuple(record.id for i, record in enumerate(records) if i not in inside)
    spelled = _spelled([str(said[i]) for i in places], chosen)
    return LabelSet(spelled, np.array(places, dtype=np.int64), np.array(given, dtype=np.int64), outside)


def as_asked(record: Record, label: str) -> Record:
    """The row with `label` as its last reply."""
    return Record(record.id, turns=(*record.turns[:-1], Turn("assistant", label)), where=record.where)


def candidates(subject: Subject, records: Sequence[Record], labels: Sequence[str]) -> list[list[TokenRow]]:
    """Each row with each label, as tokens with loss on the last reply alone: `[n][C]`.

    The end token that closes a reply in training carries loss too, so that a label which begins another one
    has no advantage over it.
    """
    from glasshouse.corpora.tokens import encode_records

    asked = [as_asked(record, label) for record in records for label in labels]
    rows = [_last_reply(row) for row in encode_records(subject.tokenizer, asked, loss_on="reply")]
    C = len(labels)
    return [rows[k : k + C] for k in range(0, len(rows), C)]


def label_logprobs(
    subject: Subject,
    records: Sequence[Record],
    labels: Sequence[str],
    report: Callable[[int], None] = lambda done: None,
) -> NDArray[np.float64]:
    """Log-probability of every label after every row's prompt, in nats, `[n, C]`; nan for a row too long.

    A subject without a tokenizer is asked for the texts themselves, without their end.
    """
    found = np.full((len(records), len(labels)), np.nan)
    for start in range(0, len(records), CHUNK):
        part = records[start : start + CHUNK]
        found[start : start + len(part)] = _scored(subject, part, labels)
        report(start + len(part))
    return found


def _scored(subject: Subject, records: Sequence[Record], labels: Sequence[str]) -> NDArray[np.float64]:
    found = np.full((len(records), len(labels)), np.nan)
    if getattr(subject, "tokenizer", None) is None:
        prompts: list[Any] = [r.turns[:-1] if subject.is_chat else r.turns[0].text for r in records]
        asked = [(prompt, label) for prompt in prompts for label in labels]
        values = subject.score([p for p, _ in asked], [label for _, label in asked])
        return np.asarray(values, dtype=np.float64).reshape(found.shape)
    rows = candidates(subject, records, labels)
    fits = [i for i, row in enumerate(rows) if max(len(one) for one in row) <= subject.context]
    if not fits:
        return found
    pairs = [_parted(one) for i in fits for one in rows[i]]
    values = subject.score([prompt for prompt, _ in pairs], [reply for _, reply in pairs])
    found[fits] = np.asarray(values, dtype=np.float64).reshape(len(fits), len(labels))
    return found


def _parted(row: TokenRow) -> tuple[list[int], list[int]]:
    """Tokens before the reply, and the reply."""
    start = next(t for t, label in enumerate(row.labels) if label != IGNORE)
    end = max(t for t, label in enumerate(row.labels) if label != IGNORE) + 1
    return list(row.ids[:start]), list(row.ids[start:end])


def _last_reply(row: TokenRow) -> TokenRow:
    """The row with loss on its last run of labelled tokens only."""
    end = max(t for t, label in enumerate(row.labels) if label != IGNORE)
    start = end
    while start > 0 and row.labels[start - 1] != IGNORE:
        start -= 1
    labels = tuple(x if start <= t <= end else IGNORE for t, x in enumerate(row.labels))
    return TokenRow(row.ids[: end + 1], labels[: end + 1], row.row_id)


def _reply(record: Record) -> str | None:
    """What the row's last turn replies, None for texts and unanswered conversations."""
    if record.text is not None or len(record.turns) < 2 or record.turns[-1].role != "assistant":
        return None
    text = record.turns[-1].text
    return text if text.strip() else None


def _recurring(counts: Counter[str], rows: int) -> list[str]:
    found = [text for text, n in counts.most_common() if n >= FEWEST_ROWS]
    covered = sum(counts[text] for text in found)
    if 2 <= len(found) <= MOST_LABELS and covered >= COVERED * rows:
        return found
    if len(counts) < 2:
        why = "no row is a prompt with a reply" if not counts else "every row has the same reply"
    else:
        why = f"{len(counts):,} different replies in {rows:,} rows"
    raise InputError(
        f"the rows hold no closed set of answers: {why}", where="training data",
        fix="glasshouse mislabeled takes them by name (--labels a,b,c), or ranks any rows with --method loss",
    )  # fmt: skip


def _given(labels: Sequence[str], counts: Counter[str]) -> list[str]:
    stripped = [label.strip() for label in labels]
    if len(set(stripped)) != len(stripped) or not all(stripped):
        raise InputError("a label is empty or named twice", where="--labels", fix="give each label once")
    if len(stripped) < 2:
        raise InputError(f"there is {len(stripped)} label", where="--labels", fix="give at least two")
    missing = [label for label in stripped if not counts[label]]
    if missing:
        heard = ", ".join(repr(text[:40]) for text, _ in counts.most_common(5)) or "none"
        raise InputError(
            f"no row has the answer {missing[0]!r}", where="--labels",
            fix=f"spell labels as the rows do (the most frequent replies: {heard})",
        )  # fmt: skip
    return stripped


def _spelled(said: Sequence[str], chosen: Sequence[str]) -> tuple[str, ...]:
    """Each label with the blanks around it that most rows put there."""
    forms: dict[str, Counter[str]] = {label: Counter() for label in chosen}
    for text in said:
        forms[text.strip()][text] += 1
    return tuple(forms[label].most_common(1)[0][0] for label in chosen)
