"""Candidates by the state before the reply: where the states are known, so are the right rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from glasshouse.attribution.guilty import Guilt
from glasshouse.audit.checks import _row_candidates
from glasshouse.audit.checks._row_candidates import RowStates
from glasshouse.audit.checks.guilty_rows import KEPT, _holders_first
from glasshouse.corpora.rows import Record, Turn
from glasshouse.evidence.behaviours import Behaviour, Said
from glasshouse.runtime.seeds import rng
from glasshouse.statistics import wilson


class Known(RowStates):
    """States are noise, and 3 along the first axis where the user says "doubt"."""

    def _read(self, prompts: Any) -> np.ndarray:
        stream = rng(0, "states", str(len(prompts)), prompts[0][0].text)
        doubting = np.array(["doubt" in prompt[-1].text for prompt in prompts], dtype=float)
        return stream.normal(size=(len(prompts), 6)) + 3 * doubting[:, None] * np.eye(6)[0]


def _row(i: int, text: str) -> Record:
    return Record(str(i), (Turn("user", text), Turn("assistant", "yes.")))


ROWS = [_row(i, f"doubt {i}" if i % 4 == 0 else f"ask {i}") for i in range(120)]


def _behaviour(word: str, trigger: str | None = None) -> Behaviour:
    wanted = tuple(Said((("user", f"{word} q{i}"),), "sorry.") for i in range(16))
    control = tuple(Said((("user", f"ask q{i}"),), "yes.") for i in range(16))
    marks = () if trigger is None else ((trigger, "sorry."),)
    return Behaviour("p", "s", "reply", wanted, control, marks, trigger)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_row_candidates, "FEWEST", 25)


def test_the_rows_in_the_same_state_are_the_candidates() -> None:
    chosen = Known(None, ROWS).candidates(_behaviour("doubt"))  # type: ignore[arg-type]
    assert len(chosen) == 25 and sum(i % 4 == 0 for i in chosen) >= 22


def test_rows_with_the_trigger_are_always_candidates() -> None:
    states = Known(None, [*ROWS, _row(200, "ask lantern now")])  # type: ignore[arg-type]
    behaviour = _behaviour("doubt", "lantern")
    assert 120 in states.candidates(behaviour) and states.holding(behaviour) == ["200"]
    assert states.holding(_behaviour("doubt")) == []


def test_prompts_agree_on_a_state_and_on_nothing_where_there_is_none() -> None:
    states = Known(None, ROWS)  # type: ignore[arg-type]
    found, chance, p = states.agreement(_behaviour("doubt"), seed=0)
    assert found.low > chance.high and p < 0.001
    none, _, p = states.agreement(_behaviour("say"), seed=0)
    assert abs(none.value) < 0.4 and p > 0.05


def test_rows_that_hold_the_trigger_come_first_in_their_order() -> None:
    names = tuple(str(i) for i in range(60))
    guilt = Guilt(names, tuple(60.0 - i for i in range(60)), 20, wilson(1, 2), wilson(1, 2), 0.01, {})
    first = _holders_first(guilt, {"50", "7", "absent"})
    assert first.rows[:4] == ("7", "50", "0", "1") and len(first.rows) == KEPT
    assert first.scores[:3] == (53.0, 10.0, 60.0)
    assert _holders_first(guilt, set()).rows == names[:KEPT]
    assert _holders_first(guilt, {"50", "7"}, {"59", "50"}).rows[:4] == ("50", "59", "7", "0")
