"""One contract for every method, as a table of small checks; `check_method(case)` runs those that apply.

The constructor stores options and nothing else; `fit` learns and returns self; what was learned ends in `_`;
disk, batches, padding, the order of rows, rounding and the number format change no answer; empty and NaN
input is refused in one sentence; a clean subject gives no finding. A `Case` says how a method is called.

How far an answer may move is derived, not chosen: a disturbance that only rounds differently may move it
`SLACK` times as far as moving every weight by two units in its last place does. Where even that moves it by
1 % of its spread, the check would be empty, and fails instead.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contract_scenes import Scene, rounded, scene, shuffled

from glasshouse.runtime.errors import GlasshouseError, InputError

SLACK = 16
VACUOUS = 0.01
BF16_LEAST = 0.98
"""Least correlation of bfloat16 answers with float32 ones: the bound that EK-FAC's own guard uses."""
LONGEST = 400
"""Longest refusal, in characters: one or two sentences."""


@dataclass(frozen=True)
class Case:
    """How to call one method.

    `options`: every constructor option with a value that is not its default. `make()` builds the method as
    the checks use it, `fit(method, scene)` fits it, `answer(method, scene)` gives what it says: numbers
    [..., rows] in the order of the rows, or (`exact`) findings that are compared as they are.
    """

    name: str
    kind: type | None
    make: Callable[[], Any]
    fit: Callable[[Any, Scene], Any]
    answer: Callable[[Any, Scene], Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    """Options that make this case what it is."""
    other: Callable[[Any, Scene], Any] | None = None
    """Fit on other data than `fit` does, and ask something."""
    uses: Sequence[Callable[[Any, Scene, Path], Any]] = ()
    """What needs a fit."""
    load: Callable[[Path, Scene], Any] | None = None
    unsaved: Sequence[str] = ()
    """Options that never change an answer and need not come back from disk."""
    empty: Sequence[Callable[[Scene], Any]] = ()
    nan: Sequence[Callable[[Scene], Any]] = ()
    findings: Callable[[Scene], Any] | None = None
    """Findings on a clean subject; must be empty."""
    start: Callable[[], Scene] = lambda: scene("gpt2")
    exact: bool = False
    gaps: Mapping[str, str] = field(default_factory=dict)
    """Checks that the method fails today, with the reason: expected to fail, and noticed when repaired."""
    apart: Mapping[str, str] = field(default_factory=dict)
    """Checks that do not apply, with the reason."""

    def far(self) -> Any:
        """The method with every option away from its default, for the way to disk and back."""
        assert self.kind is not None
        return self.kind(**{**self.options, **self.own})

    def run(self, one: Scene) -> Any:
        """Fit and answer."""
        return self.answer(self.fit(self.make(), one), one)


# -- objects -------------------------------------------------------------------------------------------------


def constructor_only_stores_options(case: Case, folder: Path) -> None:
    """Every option is kept as the very object that was given, under its own name."""
    assert case.kind is not None
    defaults = {name: p.default for name, p in _parameters(case.kind).items()}
    assert set(case.options) == set(defaults), "the case must name every option, and only those"
    same = [name for name, value in case.options.items() if value == defaults[name]]
    assert not same, f"{same} equal their defaults and would prove nothing"
    for given in (dict(case.options), defaults):
        method = case.kind(**given)
        for name, value in given.items():
            assert getattr(method, name) is value, f"option {name!r} was changed"


def options_are_given_by_name(case: Case, folder: Path) -> None:
    """At most the first option, the one that says which method it is, may be given by position."""
    assert case.kind is not None
    loose = [p.name for p in list(_parameters(case.kind).values())[1:] if p.kind is not p.KEYWORD_ONLY]
    assert not loose, f"{loose} can be given by position"


def nothing_is_learned_before_fit(case: Case, folder: Path) -> None:
    """No learned attribute exists, and every use says that a fit is missing."""
    method = case.make()
    assert not _learned(method), f"{_learned(method)} exist before fit"
    assert case.uses
    for use in case.uses:
        error = _error(lambda use=use: use(case.make(), case.start(), folder / "unfitted"))
        assert isinstance(error, AttributeError | InputError), f"unfitted use raised {error!r}"
    assert not (folder / "unfitted").exists(), "something was written before fit"


def it_can_be_shown(case: Case, folder: Path) -> None:
    """`repr` works before and after fit: a notebook shows whatever stands on the last line."""
    method = case.make()
    assert type(method).__name__ in repr(method)
    assert type(method).__name__ in repr(case.fit(method, case.start()))


def fit_returns_self_and_keeps_the_options(case: Case, folder: Path) -> None:
    """`fit` returns its object, adds attributes ending in `_` (or private ones), changes no option."""
    method = case.make()
    before, options = set(_public(method)), copy.deepcopy(_options(case, method))
    assert case.fit(method, case.start()) is method
    case.answer(method, case.start())
    added = set(_public(method)) - before
    assert added, "nothing was learned"
    assert not [name for name in added if not name.endswith("_")], f"learned under plain names: {added}"
    assert _options(case, method) == options, "fit changed an option"


def a_second_fit_forgets_the_first(case: Case, folder: Path) -> None:
    """Fitted on other data and asked first, a method says and holds the same as a fresh one."""
    assert case.other is not None
    one, method, fresh = case.start(), case.make(), case.make()
    case.other(method, one)
    case.fit(method, one)
    case.fit(fresh, one)
    left = set(_learned(method)) - set(_learned(fresh))
    assert not left, f"{left} of the first fit are left"
    _same(case.answer(method, one), case.answer(fresh, one))


def save_and_load_give_equal_answers(case: Case, folder: Path) -> None:
    """What comes back has the options, what was learned and, bit for bit, the answers of the original."""
    assert case.load is not None
    one, kept = case.start(), [name for name in case.options if name not in case.unsaved]
    for number, method in enumerate((case.make(), case.far())):
        case.fit(method, one).save(folder / str(number))
        again = case.load(folder / str(number), one)
        _same(case.answer(again, one), case.answer(method, one))
        lost = [name for name in kept if getattr(again, name) != getattr(method, name)]
        assert not lost, f"{lost} changed on disk"
        missing = set(_learned(method)) - set(_learned(again))
        assert not missing, f"{missing} were lost on disk"


def damaged_files_are_refused(case: Case, folder: Path) -> None:
    """Each saved file cut short or gone, in turn, is a refusal in one sentence."""
    assert case.load is not None
    one = case.start()
    case.fit(case.make(), one).save(folder / "saved")
    for path in sorted(p for p in (folder / "saved").rglob("*") if p.is_file())[-4:]:
        whole = path.read_bytes()
        for damage in (lambda p, b: p.write_bytes(b[: len(b) // 2]), lambda p, b: p.unlink()):
            damage(path, whole)
            _refused(lambda: case.load(folder / "saved", one))
            path.write_bytes(whole)
    _refused(lambda: case.load(folder / "never saved", one))


# -- answers -------------------------------------------------------------------------------------------------


def the_same_seed_gives_the_same_bytes(case: Case, folder: Path) -> None:
    """Neither the global random state nor a second run moves a bit, and the global state is left alone."""
    one = case.start()
    with _global_state_kept():
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        state = _global_state()
        first = case.run(one)
        assert _global_state() == state, "the global random state was used"
        torch.manual_seed(2), np.random.seed(2), random.seed(2)
        _same(case.run(one), first)


def batch_size_changes_nothing(case: Case, folder: Path) -> None:
    one = case.start()
    for batch in (1, 5):
        _close(case, case.run(replace(one, batch=batch)))


def padding_side_changes_nothing(case: Case, folder: Path) -> None:
    one = case.start()
    _close(case, case.run(replace(one, side="left")))


def row_order_changes_nothing(case: Case, folder: Path) -> None:
    one = case.start()
    _close(case, case.run(shuffled(one)))


def empty_input_is_refused(case: Case, folder: Path) -> None:
    assert case.empty
    for ask in case.empty:
        _refused(lambda ask=ask: ask(case.start()))


def nan_is_refused(case: Case, folder: Path) -> None:
    assert case.nan
    for ask in case.nan:
        _refused(lambda ask=ask: ask(case.start()))


def a_clean_subject_gives_no_finding(case: Case, folder: Path) -> None:
    assert case.findings is not None
    assert not case.findings(case.start())


CHECKS: dict[str, Callable[[Case, Path], None]] = {
    check.__name__: check
    for check in (
        constructor_only_stores_options,
        options_are_given_by_name,
        nothing_is_learned_before_fit,
        it_can_be_shown,
        fit_returns_self_and_keeps_the_options,
        a_second_fit_forgets_the_first,
        save_and_load_give_equal_answers,
        damaged_files_are_refused,
        the_same_seed_gives_the_same_bytes,
        batch_size_changes_nothing,
        padding_side_changes_nothing,
        row_order_changes_nothing,
        empty_input_is_refused,
        nan_is_refused,
        a_clean_subject_gives_no_finding,
    )
}


def check_method(case: Case, folder: Path) -> dict[str, str]:
    """Run every check that applies: its name to "holds", "gap: why" or "apart: why"; raises on a failure."""
    found = {}
    for name, check in CHECKS.items():
        if name in case.apart or name in case.gaps:
            found[name] = f"apart: {case.apart[name]}" if name in case.apart else f"gap: {case.gaps[name]}"
            continue
        check(case, folder / name)
        found[name] = "holds"
    return found


# -- families ------------------------------------------------------------------------------------------------


def check_family(case: Case, family: str) -> None:
    """Other batches, padding on the left and rows in another order, all at once, on one family."""
    one = scene(family)
    disturbed = replace(shuffled(one), side="left", batch=5)
    _close(case, case.run(disturbed), family)


def check_bf16(case: Case, family: str) -> str:
    """In bfloat16 the answers follow float32, or the method refuses; returns what happened."""
    try:
        half = case.run(scene(family, torch.bfloat16))
    except GlasshouseError as error:
        _one_sentence(error)
        return "refused"
    exact = _settled(case, family)[0]
    for a, b in zip(np.atleast_2d(half), np.atleast_2d(exact), strict=True):
        r = float(np.corrcoef(a, b)[0, 1])
        assert r >= BF16_LEAST, f"bfloat16 answers correlate {r:.3f} with float32"
    return "close"


# -- inside --------------------------------------------------------------------------------------------------


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


def _options(case: Case, method: Any) -> dict[str, Any]:
    return {name: getattr(method, name) for name in case.options}


def _public(method: Any) -> list[str]:
    names = [name for name in dir(method) if not name.startswith("_")]
    return [
        name for name in names if hasattr(method, name) and not callable(getattr(type(method), name, None))
    ]


def _learned(method: Any) -> list[str]:
    return [name for name in _public(method) if name.endswith("_")]


def _error(act: Callable[[], Any]) -> Exception | None:
    try:
        act()
    except Exception as error:
        return error
    return None


def _refused(act: Callable[[], Any]) -> None:
    error = _error(act)
    assert error is not None, "it was accepted"
    assert isinstance(error, GlasshouseError), f"not an error of the house: {error!r}"
    _one_sentence(error)


def _one_sentence(error: GlasshouseError) -> None:
    text = str(error)
    assert "\n" not in text and text.endswith(".") and len(text) <= LONGEST, text


def _same(a: Any, b: Any) -> None:
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), f"moved by {np.abs(a - b).max():.3g}"
    else:
        assert a == b


def _close(case: Case, moved: Any, family: str = "gpt2") -> None:
    if case.exact:
        assert moved == case.run(case.start())
        return
    there, rounding = _settled(case, family)
    assert np.isfinite(there).all() and moved.shape == there.shape
    # Each row of answers (a query) has its own scale.
    allowed = SLACK * rounding + 4 * np.finfo(np.float32).eps * np.abs(there).max(-1)
    assert (allowed < VACUOUS * np.std(there, -1)).all(), (
        f"answers move by {np.max(allowed / np.std(there, -1)):.1e} of their spread when weights are rounded"
    )
    far = np.abs(moved - there).max(-1) / allowed
    assert (far <= 1).all(), f"moved {far.max():.1f} times as far as rounding explains"


_SETTLED: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}


def _settled(case: Case, family: str) -> tuple[np.ndarray, np.ndarray]:
    """The undisturbed answers, and how far they move when weights move by two units in their last place."""
    key = case.name, family
    if key not in _SETTLED:
        there = case.run(scene(family))
        _SETTLED[key] = there, np.abs(case.run(rounded(family, 0)) - there).max(-1)
    return _SETTLED[key]


def _global_state() -> tuple[bytes, bytes, Any]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()


class _global_state_kept:
    def __enter__(self) -> None:
        self.state = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.state[0])
        np.random.set_state(self.state[1])
        random.setstate(self.state[2])
