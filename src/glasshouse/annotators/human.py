"""People as annotators: a blinded, shuffled sheet goes out, and comes back into the same arrays."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from glasshouse.annotators._base import AnnotatorBase, Cells, Records
from glasshouse.annotators._errors import AnnotatorUnavailable
from glasshouse.annotators._results import Mark, Outcome
from glasshouse.annotators._types import Axis, Capability, Kind, Order, Pair, Predicate
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError
from glasshouse.runtime.seeds import rng
from glasshouse.runtime.text import clean_text, shorten
from glasshouse.statistics.estimate import Estimate

Row = dict[str, str]
RATE = ("row", "statement", "text", "answer")
COMPARE = ("row", "axis", "prompt", "first", "second", "answer")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_YES = {"yes": 1.0, "y": 1.0, "true": 1.0, "no": 0.0, "n": 0.0, "false": 0.0}
_SIDES = {
    "first": Mark.FIRST, "1": Mark.FIRST, "second": Mark.SECOND, "2": Mark.SECOND, "equal": Mark.EQUAL,
    "tie": Mark.EQUAL, "n/a": Mark.NOT_APPLICABLE, "not_applicable": Mark.NOT_APPLICABLE,
    "unsure": Mark.UNSURE,
}  # fmt: skip


class HumanAnnotator(AnnotatorBase):
    """Writes the sheet `csv_out` and reads `csv_in`, the same sheet with its `answer` column filled in.

    The first `rate` or `compare` writes the sheet and raises AnnotatorUnavailable saying so; once `csv_in`
    exists the same call reads it. Rows are in an order drawn from `seed`, named by opaque codes, and nothing
    in them says which is which; each order of a pair is a row of its own, and where one order is asked it is
    drawn (the answer is turned back). `gold` items with known answers,
    (statement or axis, text or Pair, answer), are mixed in; `gold_accuracy_` is the rater's share right.
    Answers are yes, no or a number in [0, 1]; first, second, equal, n/a or unsure. An empty cell is NaN.
    Raises InputError naming the row that is missing, doubled or holds another answer.
    """

    kind: ClassVar[Kind] = "human"
    capabilities: frozenset[Capability] = frozenset({"rate", "assign", "compare"})

    def __init__(
        self,
        csv_in: Path | str,
        csv_out: Path | str,
        *,
        rater: str = "rater",
        gold: Sequence[tuple[str, str | Pair, str]] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.csv_in, self.csv_out = Path(csv_in), Path(csv_out)
        if self.csv_in == self.csv_out:
            raise InputError("the sheet would overwrite its answers", fix="give two names")
        self.rater, self.gold, self.seed = rater, tuple(gold), seed
        self.gold_accuracy_: Estimate | None = None

    @property
    def id(self) -> str:
        """'human:<rater>'."""
        return f"human:{self.rater}"

    async def _rate(self, predicates: list[Predicate], texts: list[str], records: Records) -> Cells:
        asked = [(p.text, text) for text in texts for p in predicates]
        known = [(a, item) for a, item, _ in self.gold if isinstance(item, str)]
        sheet = [{"statement": a, "text": text} for a, text in [*asked, *known]]
        said = self._answers(sheet, RATE)
        numbers = [_number(answer, row) for row, answer in said]
        self._judge_gold(
            numbers[len(asked) :], [_number(g, "gold") for _, i, g in self.gold if isinstance(i, str)]
        )
        value = np.array(numbers[: len(asked)], dtype=np.float32).reshape(len(texts), len(predicates))
        return Cells(
            value, outcome=np.where(np.isnan(value), Outcome.UNPARSED, Outcome.ANSWERED).astype(np.int8)
        )

    async def _compare(self, axes: list[Axis], pairs: list[Pair], order: Order, records: Records) -> Cells:
        n, k = len(pairs), len(axes)
        if order == "both":
            turned = np.broadcast_to([False, True], (n, k, 2))
        else:  # one row per pair, its order drawn, so that a liking for a place cancels out
            turned = rng(self.seed, "order").random((n, k, 1)) < 0.5
        asked = [
            (str(axis), pair.swapped if swap else pair)
            for pair, of_pair in zip(pairs, turned, strict=True)
            for axis, of_axis in zip(axes, of_pair, strict=True)
            for swap in of_axis
        ]
        known = [(a, item) for a, item, _ in self.gold if isinstance(item, Pair)]
        sheet = [
            {"axis": a, "prompt": pair.prompt, "first": pair.x, "second": pair.y}
            for a, pair in [*asked, *known]
        ]
        said = self._answers(sheet, COMPARE)
        marks = [_side(answer, row) for row, answer in said]
        self._judge_gold(
            marks[len(asked) :], [_side(g, "gold") for _, i, g in self.gold if isinstance(i, Pair)]
        )
        told = np.array(marks[: len(asked)], dtype=np.int8).reshape(turned.shape)
        if order == "both":
            return Cells(told)
        as_given = np.where(turned & (np.abs(told) == 1), -told, told)
        return Cells(np.concatenate([as_given, np.full_like(told, Mark.NOT_ASKED)], axis=2))

    def _answers(self, sheet: list[Row], columns: Sequence[str]) -> list[tuple[str, str]]:
        """(row code, answer) of each row of the sheet in our order; writes the sheet when none came back."""
        codes = [files.sha256_json([self.seed, place, row])[:10] for place, row in enumerate(sheet)]
        if not self.csv_in.exists():
            order = rng(self.seed, "sheet").permutation(len(sheet))
            _write(self.csv_out, [{"row": codes[i], **sheet[i], "answer": ""} for i in order], columns)
            raise AnnotatorUnavailable(
                f"{len(sheet)} rows wait for answers in {self.csv_out}",
                where=self.id,
                fix=f"fill the column `answer`, save it as {self.csv_in}, and repeat the request",
            )
        told = _read(self.csv_in)
        missing = [code for code in codes if code not in told]
        if missing:
            raise InputError(
                f"{len(missing)} rows are missing, {missing[0]} first",
                where=str(self.csv_in),
                fix="answer the sheet of this very request, all rows kept",
            )
        return [(code, told[code]) for code in codes]

    def _judge_gold(self, said: Sequence[float], right: Sequence[float]) -> None:
        from glasshouse.statistics import wilson

        if right:
            hits = sum(a == b for a, b in zip(said, right, strict=True))
            self.gold_accuracy_ = wilson(hits, len(right))


def _write(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> None:
    handle = io.StringIO()
    writer = csv.DictWriter(handle, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _inert(value) for key, value in row.items()} for row in rows)
    files.write_text(path, handle.getvalue())


def _inert(text: str) -> str:
    """Text that no spreadsheet runs as a formula and no terminal obeys; only shown, never read back."""
    shown = clean_text(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def _read(path: Path) -> dict[str, str]:
    """Row code -> answer."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"it cannot be read ({error})", where=str(path), fix="save it as CSV in UTF-8"
        ) from None
    told: dict[str, str] = {}
    reader: Any = csv.DictReader(io.StringIO(text))
    if not {"row", "answer"} <= set(reader.fieldnames or ()):
        raise InputError("it has no columns `row` and `answer`", where=str(path), fix="keep the header")
    for line in reader:
        code = (line["row"] or "").strip()
        if code in told:
            raise InputError(f"row {shorten(code)} is there twice", where=str(path), fix="keep one of them")
        told[code] = (line["answer"] or "").strip().casefold()
    return told


def _number(answer: str, row: str) -> float:
    if answer == "":
        return float("nan")
    if answer in _YES:
        return _YES[answer]
    try:
        value = float(answer)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(
            f"the answer {shorten(answer)!r} is not known",
            where=f"row {row}",
            fix="write yes, no or a number in [0, 1]",
        )
    return value


def _side(answer: str, row: str) -> int:
    if answer == "":
        return Mark.UNPARSED
    if answer not in _SIDES:
        raise InputError(
            f"the answer {shorten(answer)!r} is not known",
            where=f"row {row}",
            fix="write first, second, equal, n/a or unsure",
        )
    return _SIDES[answer]
