"""Claims: a sentence, an estimate, the threshold, the null, the control; and the one rule for a verdict."""

from __future__ import annotations

import operator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glasshouse.statistics.estimate import Estimate

Verdict = Literal["holds", "fails", "undecided", "not run", "reported"]
Relation = Literal[">=", ">", "<=", "<", "between", "report"]
_HOLDS = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True)
class Threshold:
    """`value` compared by `relation`; 'between' uses `value` and `upper`; 'report' asks for nothing."""

    relation: Relation
    value: float | None = None
    upper: float | None = None
    why: str = ""
    """The reason, where the spec states none."""

    def met_by(self, x: float) -> bool:
        """Whether the point x meets the threshold."""
        if self.relation == "report":
            return True
        assert self.value is not None
        if self.relation == "between":
            assert self.upper is not None
            return self.value <= x <= self.upper
        return bool(_HOLDS[self.relation](x, self.value))

    def excluded_by(self, estimate: Estimate) -> bool:
        """Whether the whole interval misses the threshold."""
        if self.relation == "between":
            assert self.value is not None and self.upper is not None
            return estimate.high < self.value or estimate.low > self.upper
        best = estimate.high if self.relation in (">=", ">") else estimate.low
        return not self.met_by(best)


@dataclass(frozen=True)
class ClaimSpec:
    """A claim as declared in code before its first run. `id` is the spec's, e.g. 'ekfac/3b'."""

    id: str
    claim: str
    threshold: Threshold
    null: float | None = None
    """The value the interval must exclude; None where the threshold itself is the null."""
    control: str = ""
    """What must NOT meet the threshold; empty only for 'report' rows and deterministic facts."""
    paper: str = ""


@dataclass(frozen=True)
class Claim:
    """A declared claim with its measured estimate and control."""

    spec: ClaimSpec
    estimate: Estimate
    control: Estimate | None = None
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """ARCHITECTURE's one rule.

        holds: the point meets the threshold, the interval excludes the null, the control fails.
        fails: the point misses and the interval excludes the threshold, or the control passes.
        Else undecided.
        """
        threshold = self.spec.threshold
        if threshold.relation == "report":
            return "reported"
        if not self.estimate.defined:
            return "undecided"
        if self.control is not None and self.control.defined and threshold.met_by(self.control.value):
            return "fails"
        if not threshold.met_by(self.estimate.value):
            return "fails" if threshold.excluded_by(self.estimate) else "undecided"
        if self.spec.control and self.control is None:
            return "undecided"
        null = self.spec.null
        return "holds" if null is None or self.estimate.excludes(null) else "undecided"

    def to_json(self) -> dict[str, Any]:
        """The ledger's fields, less the provenance of the run."""
        return {
            "id": self.spec.id,
            "claim": self.spec.claim,
            "estimate": self.estimate.to_json(),
            "threshold": asdict(self.spec.threshold),
            "null": self.spec.null,
            "control": {
                "what": self.spec.control,
                "estimate": None if self.control is None else self.control.to_json(),
            },
            "paper": self.spec.paper,
            "verdict": self.verdict,
            "note": self.note,
        }
