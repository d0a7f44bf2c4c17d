"""Generate, rate, refine, retrain: a loop with four stored phases, so that a kill repeats one at most.

Proposals and ratings are tables of plain JSON; the data of a round keeps its provenance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from glasshouse.corpora.rows import Record, Turn
from glasshouse.runtime import files
from glasshouse.runtime.cache import Cache
from glasshouse.training._start import model_identity
from glasshouse.training._train import Checkpoint
from glasshouse.training.mix import DataRef, Mix, MixRow

Table = Sequence[Mapping[str, Any]]
"""Rows of plain JSON values; phases hand tables on, so that they can be stored."""


@dataclass(frozen=True)
class State:
    """Where a loop stands: the model of the last retraining, the start of the first, and the round's number.

    `base` is the model before round 0, from which `retrain` starts anew unless it means to continue.
    """

    number: int
    model: Path
    base: Path
    seed: int


class Round(Protocol):
    """One loop's four phases, deterministic given their arguments; `slug` and `options` name it in the cache.

    `options` holds everything else the phases depend on (rater, temperature, ...), as plain JSON.
    """

    slug: str
    options: Mapping[str, Any]

    def propose(self, state: State) -> Table:
        """Samples of the model."""

    def rate(self, table: Table) -> Table:
        """The table with ratings."""

    def refine(self, state: State, table: Table) -> Mix | Sequence[MixRow]:
        """The next training data."""

    def retrain(self, data: DataRef, state: State) -> Checkpoint:
        """The next model, usually `train(spec)`, which is cached by itself."""


@dataclass(frozen=True)
class RoundResult:
    """What one round left: its tables, its training data and its model."""

    number: int
    proposed: Table
    rated: Table
    data: DataRef
    checkpoint: Path


def run_rounds(
    round_: Round, n: int, start: Path | str, *, seed: int = 0, cache: Cache | None = None, code: str = ""
) -> list[RoundResult]:
    """Run `n` rounds from the model at `start`; each phase is stored under what went into it.

    `code` is the code version of the phases (`runtime.code_version(module)`): a change recomputes them.
    Raises what a phase raises; the phases before it stay stored.
    """
    cache = Cache() if cache is None else cache
    phases = _Phases(cache, round_, code)
    state = State(0, Path(start), Path(start), seed)
    results = []
    for number in range(n):
        state = State(number, state.model, state.base, seed)
        key = [number, seed, model_identity(state.model), model_identity(state.base)]
        proposed = phases.table("propose", key, partial(round_.propose, state))
        rated = phases.table("rate", [proposed], partial(round_.rate, proposed))
        data = phases.data([*key, rated], partial(round_.refine, state, rated))
        path = phases.model([*key, data.sha256], partial(round_.retrain, data, state))
        results.append(RoundResult(number, proposed, rated, data, path))
        state = State(number, path, state.base, seed)
    return results


@dataclass(frozen=True)
class _Phases:
    cache: Cache
    round_: Round
    code: str

    def table(self, phase: str, key: Any, compute: Callable[[], Table]) -> Table:
        return self._stored(phase, key, lambda: [dict(row) for row in compute()])

    def data(self, key: Any, compute: Callable[[], Mix | Sequence[MixRow]]) -> DataRef:
        rows = self._stored("refine", key, lambda: [_row_to_json(row) for row in DataRef.of(compute()).rows])
        return DataRef.of([_row_from_json(row) for row in rows])

    def model(self, key: Any, compute: Callable[[], Checkpoint]) -> Path:
        path = Path(self._stored("retrain", key, lambda: str(compute().path)))
        # The model is an entry of its own and may have been evicted; its training puts it back.
        return path if path.is_dir() else compute().path

    def _stored(self, phase: str, key: Any, compute: Callable[[], Any]) -> Any:
        about = {"round": self.round_.slug, "options": dict(self.round_.options), "phase": phase}
        args = {**about, "from": files.sha256_json(key)}

        def build(folder: Path) -> None:
            files.write_json(folder / "result.json", compute())

        return files.read_json(self.cache.fetch("round", args, build, code=self.code) / "result.json")


def _row_to_json(row: MixRow) -> dict[str, Any]:
    record = row.record
    return {
        "id": record.id,
        "turns": [[turn.role, turn.text] for turn in record.turns],
        "text": record.text,
        "fields": dict(record.fields),
        "where": record.where,
        "origin": row.origin,
        "row_id": row.row_id,
        "round": row.round,
    }


def _row_from_json(told: Mapping[str, Any]) -> MixRow:
    turns = tuple(Turn(role, text) for role, text in told["turns"])
    record = Record(told["id"], turns, told["text"], told["fields"], told["where"])
    return MixRow(record, told["origin"], told["row_id"], told["round"])
