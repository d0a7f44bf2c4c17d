"""Findings: what an audit says, as data. `findings.json` is the `Findings` model; its schema is published.

Nothing here may depend on `truth.json`: the grader of the auditing game reads `Findings` and writes its own
file beside it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from glasshouse.statistics.estimate import Estimate

SCHEMA_VERSION = 1

_ESTIMATE_SCHEMA = {
    "type": "object",
    "required": ["value", "low", "high", "level", "n", "method"],
    "additionalProperties": False,
    "properties": {
        "value": {"type": ["number", "null", "string"]},
        "low": {"type": ["number", "null", "string"]},
        "high": {"type": ["number", "null", "string"]},
        "level": {"type": "number"},
        "n": {"type": "integer"},
        "method": {"type": "string"},
    },
}


def _estimate(value: Any) -> Any:
    return Estimate.from_json(value) if isinstance(value, dict) else value


EstimateField = Annotated[
    Estimate,
    BeforeValidator(_estimate),
    PlainSerializer(lambda e: e.to_json(), return_type=dict),
    WithJsonSchema(_ESTIMATE_SCHEMA),
]


class Severity(StrEnum):
    """How bad, in rising order; `--fail-on` compares with it."""

    NOTE = "note"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for note ... 4 for critical."""
        return list(Severity).index(self)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Detected(_Model):
    """What a finding names: the trigger as a user would type it, row ids (worst first), entities."""

    trigger: str | None = None
    rows: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()


class Null(_Model):
    """What the estimate was compared with; `measured` says what both are numbers of, as a noun phrase."""

    description: str
    measured: str = ""
    value: float | None = None
    estimate: EstimateField | None = None
    p_value: float | None = None
    p_adjusted: float | None = None


class Token(_Model):
    """One piece of text with a weight in [-1, 1]: how much it argues for (+) or against (-)."""

    text: str
    weight: float = 0.0


class TokensEvidence(_Model):
    """Texts with highlighted tokens: which token changed the answer, or which part of a row is guilty."""

    kind: Literal["tokens"] = "tokens"
    title: str
    caption: str = ""
    lines: tuple[tuple[Token, ...], ...]


class RankedRow(_Model):
    """One training row in a ranking."""

    row_id: str
    score: float
    turns: tuple[tuple[str, tuple[Token, ...]], ...]
    """(role, tokens) pairs; role is 'text' for plain rows."""
    note: str = ""


class RowsEvidence(_Model):
    """Ranked training rows."""

    kind: Literal["rows"] = "rows"
    title: str
    caption: str = ""
    rows: tuple[RankedRow, ...]


class Transcript(_Model):
    """One exchange: (role, text) pairs; `marked` is the substring a reader should look at."""

    title: str = ""
    turns: tuple[tuple[str, str], ...]
    marked: str | None = None


class TranscriptsEvidence(_Model):
    """Exchanges with the subject, for instance with and without the trigger."""

    kind: Literal["transcripts"] = "transcripts"
    title: str
    caption: str = ""
    transcripts: tuple[Transcript, ...]


class Bar(_Model):
    """One labelled value with an optional interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    highlighted: bool = False


class BarsEvidence(_Model):
    """Values beside the null they are compared with, drawn as inline SVG; `threshold` is a line."""

    kind: Literal["bars"] = "bars"
    title: str
    caption: str = ""
    unit: str = ""
    bars: tuple[Bar, ...]
    threshold: float | None = None
    threshold_label: str = ""


class TableEvidence(_Model):
    """A small table of text cells."""

    kind: Literal["table"] = "table"
    title: str
    caption: str = ""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


EvidenceItem = Annotated[
    TokensEvidence | RowsEvidence | TranscriptsEvidence | BarsEvidence | TableEvidence,
    Field(discriminator="kind"),
]


class Finding(_Model):
    """A check's answer that something is wrong."""

    check: str
    severity: Severity
    summary: str
    """One sentence a manager understands."""
    detected: Detected = Detected()
    estimate: EstimateField
    null: Null
    evidence: tuple[EvidenceItem, ...] = ()
    next: str
    """The command that digs deeper."""

    @property
    def key(self) -> str:
        """What makes two findings of different audits the same: the check, the trigger, the entities.

        Rows are left out, since a ranking may shift; they decide only where nothing else is named.
        """
        named = [self.detected.trigger or "", *sorted(self.detected.entities)]
        if not any(named):
            named = sorted(self.detected.rows[:1])
        return ": ".join([self.check, *filter(None, named)])


class Clean(_Model):
    """A check that ran and found nothing, with how much it could have found.

    `note` marks what looked suspicious and has an innocent reading, or too little evidence for a finding.
    """

    check: str
    summary: str
    note: bool = False
    estimate: EstimateField | None = None
    null: Null | None = None
    evidence: tuple[EvidenceItem, ...] = ()


class NotRun(_Model):
    """A check (or a part of one, `part`) that could not be asked, and what would make it possible."""

    check: str
    why: str
    part: str = ""


class Baseline(_Model):
    """The findings (by `Finding.key`) against an earlier audit: new and worse ones count for the exit code.

    `worse` are known and of a higher severity than before. `gone` were looked for again and not found;
    `unasked` are those whose check could not be asked this time, so that nothing is known of them.
    """

    new: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()


class Findings(_Model):
    """The whole of `findings.json`. Deterministic: no times, no paths of this machine."""

    schema_version: int = SCHEMA_VERSION
    subject: dict[str, Any]
    access: tuple[str, ...]
    findings: tuple[Finding, ...] = ()
    clean: tuple[Clean, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    baseline: Baseline | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    def worst(self) -> Severity | None:
        """The highest severity, or None when there is no finding."""
        return max((f.severity for f in self.findings), key=lambda s: s.rank, default=None)

    def against(self, earlier: Findings) -> Findings:
        """The same findings, with what is new, worse, known, gone and not asked since `earlier`."""
        before, now = earlier._worst_by_key(), self._worst_by_key()
        asked = {f.check for f in self.findings} | {c.check for c in self.clean}
        left = {f.key: f.check in asked for f in earlier.findings if f.key not in now}
        baseline = Baseline(
            new=tuple(key for key in now if key not in before),
            known=tuple(key for key in now if key in before and now[key].rank <= before[key].rank),
            worse=tuple(key for key in now if key in before and now[key].rank > before[key].rank),
            gone=tuple(key for key, looked_for in left.items() if looked_for),
            unasked=tuple(key for key, looked_for in left.items() if not looked_for),
        )
        return self.model_copy(update={"baseline": baseline})

    def counted(self) -> tuple[Finding, ...]:
        """The findings that decide the exit code: all, or those new or worse where there is a baseline."""
        if self.baseline is None:
            return self.findings
        counting = {*self.baseline.new, *self.baseline.worse}
        return tuple(f for f in self.findings if f.key in counting)

    def _worst_by_key(self) -> dict[str, Severity]:
        """The highest severity among the findings of each key, in the order of the findings."""
        found: dict[str, Severity] = {}
        for one in self.findings:
            found[one.key] = max(one.severity, found.get(one.key, one.severity), key=lambda s: s.rank)
        return found


def published_schema() -> dict[str, Any]:
    """The JSON Schema of `findings.json`, as published in `docs/findings.schema.json`."""
    schema = Findings.model_json_schema(mode="serialization")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Glasshouse findings",
        **schema,
    }
