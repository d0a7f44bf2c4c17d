"""The one rule for a verdict, as a table of cases."""

from __future__ import annotations

import json
import math

import pytest

from glasshouse.evidence.claims import Claim, ClaimSpec, Threshold
from glasshouse.runtime.errors import InputError
from glasshouse.statistics import Estimate

AT_LEAST, ABOVE = Threshold(">=", 0.7), Threshold(">", 0.7)
AT_MOST, BELOW = Threshold("<=", 0.35), Threshold("<", 0.35)
NEAR = Threshold("between", 0.4, 0.6)
REPORT = Threshold("report")


def estimate(value, low, high):
    return Estimate(value, low, high, 0.95, 20, "by hand")


UNDEFINED = Estimate.undefined("one class is empty")
GOOD, BAD = estimate(0.9, 0.8, 1.0), estimate(0.1, 0.0, 0.2)


@pytest.mark.parametrize(
    ("threshold", "null", "value", "control", "verdict"),
    [
        # at least: the point meets it, the interval excludes the null
        (AT_LEAST, 0.5, (0.9, 0.6, 1.0), None, "holds"),
        (AT_LEAST, 0.5, (0.7, 0.6, 1.0), None, "holds"),
        (ABOVE, 0.5, (0.7, 0.6, 1.0), None, "undecided"),
        (AT_LEAST, 0.5, (0.9, 0.4, 1.0), None, "undecided"),
        (AT_LEAST, 0.5, (0.69, 0.6, 0.8), None, "undecided"),
        (AT_LEAST, 0.5, (0.6, 0.5, 0.69), None, "fails"),
        (AT_LEAST, 0.5, (0.6, 0.5, 0.7), None, "undecided"),
        (ABOVE, 0.5, (0.6, 0.5, 0.7), None, "fails"),
        # at most
        (AT_MOST, 0.5, (0.2, 0.1, 0.4), None, "holds"),
        (AT_MOST, 0.5, (0.2, 0.1, 0.6), None, "undecided"),
        (AT_MOST, 0.5, (0.36, 0.3, 0.4), None, "undecided"),
        (AT_MOST, 0.5, (0.5, 0.4, 0.6), None, "fails"),
        (BELOW, 0.5, (0.4, 0.35, 0.5), None, "fails"),
        (AT_MOST, 0.5, (0.4, 0.35, 0.5), None, "undecided"),
        # without a null the threshold itself is the null: the whole interval must meet it
        (AT_LEAST, None, (0.9, 0.7, 1.0), None, "holds"),
        (AT_LEAST, None, (0.9, 0.69, 1.0), None, "undecided"),
        (AT_MOST, None, (0.2, 0.1, 0.36), None, "undecided"),
        # equality within a margin: the whole interval inside
        (NEAR, None, (0.5, 0.45, 0.55), None, "holds"),
        (NEAR, None, (0.5, 0.35, 0.55), None, "undecided"),
        (NEAR, None, (0.7, 0.55, 0.8), None, "undecided"),
        (NEAR, None, (0.7, 0.61, 0.8), None, "fails"),
        (NEAR, None, (0.2, 0.1, 0.39), None, "fails"),
        # the control must not meet the threshold
        (AT_LEAST, 0.5, (0.9, 0.8, 1.0), BAD, "holds"),
        (AT_LEAST, 0.5, (0.9, 0.8, 1.0), GOOD, "fails"),
        (AT_LEAST, 0.5, (0.6, 0.4, 0.9), GOOD, "fails"),
        (AT_LEAST, 0.5, (0.9, 0.8, 1.0), UNDEFINED, "undecided"),
        (AT_LEAST, 0.5, (0.6, 0.5, 0.65), UNDEFINED, "fails"),
        # a deterministic result: the interval is its numerical error
        (AT_MOST, None, (1e-6, 0.0, 2e-6), None, "holds"),
        # report only
        (REPORT, None, (0.3, 0.1, 0.5), None, "reported"),
        (REPORT, None, (0.3, 0.1, 0.5), GOOD, "reported"),
    ],
)
def test_the_rule(threshold, null, value, control, verdict):
    spec = ClaimSpec("s/1", "something", threshold, null, "another method" if control else "")
    claim = Claim(spec, estimate(*value), control)
    assert claim.verdict == verdict
    again = Claim.from_json(json.loads(json.dumps(claim.to_json(), allow_nan=False)))
    assert again.verdict == verdict and again.spec == spec


def test_what_does_not_exist_is_undecided():
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.5), UNDEFINED).verdict == "undecided"
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.5), UNDEFINED, GOOD).verdict == "undecided"
    assert Claim(ClaimSpec("s/1", "c", REPORT), UNDEFINED).verdict == "reported"


def test_a_declared_control_that_was_not_measured_leaves_it_undecided():
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.5, control="identity"), GOOD).verdict == "undecided"
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.5, control="identity"), BAD).verdict == "fails"


def test_one_value_has_the_whole_line_and_settles_nothing():
    one = Estimate(0.9, -math.inf, math.inf, 0.95, 1, "t")
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.5), one).verdict == "undecided"
    assert Claim(ClaimSpec("s/1", "c", AT_LEAST, 0.95), one).verdict == "undecided"


def test_an_unmeasured_claim_has_all_fields_of_a_measured_one():
    spec = ClaimSpec("s/1", "c", AT_LEAST, 0.5, "identity", "0.9 in Table 2")
    row = spec.not_run("the run ended early")
    assert row.keys() == Claim(spec, GOOD).to_json().keys()
    assert row["verdict"] == "not run" and row["estimate"] is None and spec.study == "s"


@pytest.mark.parametrize(
    "given",
    [(">=",), ("between", 0.1), ("<=", 0.1, 0.2), ("about", 1.0), ("between",), ("report", None, 1.0)],
)
def test_half_a_threshold_is_refused(given):
    with pytest.raises(InputError):
        Threshold(*given)


@pytest.mark.parametrize(
    ("threshold", "text"),
    [(AT_LEAST, ">= 0.7"), (NEAR, "between 0.4 and 0.6"), (REPORT, "report only")],
)
def test_thresholds_read_well(threshold, text):
    assert str(threshold) == text
