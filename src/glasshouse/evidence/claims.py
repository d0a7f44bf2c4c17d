"""Claims: a sentence, an estimate, the threshold, the null, the control; and the one rule for a verdict."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from glasshouse.runtime.errors import InputError
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

    def met_throughout(self, estimate: Estimate) -> bool:
        """Whether every value in the interval meets the threshold (for 'between': equivalence)."""
        return estimate.defined and self.met_by(estimate.low) and self.met_by(estimate.high)

    def excluded_by(self, estimate: Estimate) -> bool:
        """Whether the whole interval misses the threshold."""
        if self.relation == "between":
            assert self.value is not None and self.upper is not None
            return estimate.high < self.value or estimate.low > self.upper
        best = estimate.high if self.relation in (">=", ">") else estimate.low
        return not self.met_by(best)

    def __str__(self) -> str:
        if self.relation == "report":
            return "report only"
        if self.relation == "between":
            return f"between {self.value:g} and {self.upper:g}"
        return f"{self.relation} {self.value:g}"

    def __post_init__(self) -> None:
        if self.relation not in (*_HOLDS, "between", "report"):
            raise InputError(f"the threshold's relation is {self.relation!r}", fix="see Relation")
        if self.relation != "report" and self.value is None:
            raise InputError(f"a threshold {self.relation!r} has no value", fix="state it, or 'report'")
        if (self.relation == "between") != (self.upper is not None):
            raise InputError("'upper' belongs to 'between' and to nothing else")


@dataclass(frozen=True)
class ClaimSpec:
    """A claim as declared in code before its first run. `id` is the spec's, e.g. 'ekfac/3b'."""

    id: str
    claim: str
    threshold: Threshold
    null: float | None = None
    """The value the interval must exclude; None where the threshold itself is the null: then the whole
    interval must meet it."""
    control: str = ""
    """What must NOT meet the threshold; empty only for 'report' rows and deterministic facts."""
    paper: str = ""

    @property
    def study(self) -> str:
        """The part of the id before the slash."""
        return self.id.partition("/")[0]

    def declared(self) -> dict[str, Any]:
        """What must be fixed before the run: threshold, null and control, as the ledger stores them."""
        return {"threshold": asdict(self.threshold), "null": self.null, "control": self.control}

    def not_run(self, note: str = "") -> dict[str, Any]:
        """The ledger's fields for a claim without a measurement."""
        return {
            "id": self.id,
            "claim": self.claim,
            "estimate": None,
            "threshold": asdict(self.threshold),
            "null": self.null,
            "control": {"what": self.control, "estimate": None},
            "paper": self.paper,
            "verdict": "not run",
            "note": note,
        }


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
        Else undecided: also where the estimate or a declared control does not exist.
        """
        threshold = self.spec.threshold
        if threshold.relation == "report":
            return "reported"
        if not self.estimate.defined:
            return "undecided"
        control = self.control if self.control is not None and self.control.defined else None
        if control is not None and threshold.met_by(control.value):
            return "fails"
        if not threshold.met_by(self.estimate.value):
            return "fails" if threshold.excluded_by(self.estimate) else "undecided"
        if control is None and (self.spec.control or self.control is not None):
            return "undecided"
        null = self.spec.null
        excludes = threshold.met_throughout(self.estimate) if null is None else self.estimate.excludes(null)
        return "holds" if excludes else "undecided"

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

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Claim:
        """A stored claim with an estimate, read back; its verdict is worked out again, not read."""
        threshold = Threshold(**row["threshold"])
        control = row["control"]
        spec = ClaimSpec(row["id"], row["claim"], threshold, row["null"], control["what"], row["paper"])
        other = None if control["estimate"] is None else Estimate.from_json(control["estimate"])
        return cls(spec, Estimate.from_json(row["estimate"]), other, row.get("note", ""))
