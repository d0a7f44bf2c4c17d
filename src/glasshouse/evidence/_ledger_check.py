"""What keeps the ledger from standing for the code: missing, not run, stale, moved or contradicted claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from glasshouse.evidence.claims import Claim, ClaimSpec

Kind = Literal["missing", "not run", "stale", "moved", "contradicted", "undeclared"]
MEANING: dict[Kind, str] = {
    "missing": "declared, and nothing is stored or no test shows it",
    "not run": "stored without a measurement",
    "stale": "measured by code that has changed since; run it again",
    "moved": "threshold, null or control differ from those it was measured under",
    "contradicted": "the stored verdict does not follow from the stored numbers",
    "undeclared": "stored, but nothing declares it any more",
}
"""What each kind of problem means, in the order they are told."""


@dataclass(frozen=True)
class Problem:
    """One thing that does not stand; `id` is a claim's, or the slug of a study."""

    kind: Kind
    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.id}: {self.what}"

    def to_json(self) -> dict[str, str]:
        """`{"kind","id","what"}`."""
        return {"kind": self.kind, "id": self.id, "what": self.what}


def find_problems(
    records: Mapping[str, Mapping[str, Any]],
    *,
    specs: Iterable[ClaimSpec],
    codes: Mapping[str, str],
    tests: Path | None,
) -> list[Problem]:
    """See `glasshouse.evidence.ledger.problems`."""
    from glasshouse.evidence.ledger import declared

    in_code = {spec.id: spec for spec in specs}
    rows = {row["id"]: (record, row) for record in records.values() for row in record["claims"]}
    known = {entry.id: entry for entry in declared()}
    found: list[Problem] = []
    for entry in known.values():
        if entry.kind == "test":
            found += _test_problems(entry.id, entry.shown_by, tests)
        elif entry.id not in rows:
            where = "declared in code but not stored" if entry.id in in_code else "no study declares it"
            found.append(Problem("missing", entry.id, f"missing ({where})"))
    for claim in in_code:
        if claim not in rows and claim not in known:
            found.append(Problem("missing", claim, "missing (declared in code but not stored)"))
    for claim, (record, row) in rows.items():
        measured_by_benchmark = record.get("kind") == "benchmark" and claim in known
        found += _row_problems(claim, row, in_code.get(claim), declared_elsewhere=measured_by_benchmark)
    for slug, record in records.items():
        now = code_now(record, codes)
        if now is not None and now != record["code"]:
            again = "the benchmark" if record.get("kind") == "benchmark" else "the study"
            what = f"stale (run with code {record['code']}, now {now}); run {again} again"
            found.append(Problem("stale", slug, what))
    return sorted(found, key=lambda problem: list(MEANING).index(problem.kind))


def code_now(record: Mapping[str, Any], codes: Mapping[str, str]) -> str | None:
    """The version of the code behind a stored record as it is now; None where it is not installed here."""
    if record.get("kind") == "benchmark":
        return measured_code(record.get("measures") or ())
    return codes.get(record["study"])


def measured_code(modules: Iterable[str]) -> str | None:
    """One code version for the modules that a benchmark measures; None where one is not here."""
    from glasshouse.runtime import files
    from glasshouse.runtime.codeversion import code_version
    from glasshouse.runtime.errors import InputError

    try:
        return files.sha256_json({name: code_version(name) for name in sorted(modules)})[:16]
    except InputError:
        return None


def _test_problems(claim: str, shown_by: str | None, tests: Path | None) -> list[Problem]:
    from glasshouse.evidence.ledger import names_a_test

    if shown_by is None:
        return [Problem("missing", claim, "missing (no test is named to show it)")]
    if tests is None:
        return [Problem("missing", claim, "cannot be looked up (the tests are not installed here)")]
    if names_a_test(tests, shown_by):
        return []
    return [Problem("missing", claim, f"missing (the test {shown_by} does not exist)")]


def _row_problems(
    claim: str, row: Mapping[str, Any], spec: ClaimSpec | None, *, declared_elsewhere: bool
) -> list[Problem]:
    found = []
    if row["verdict"] == "not run":
        found.append(Problem("not run", claim, f"not run ({row.get('note') or 'no reason stored'})"))
    elif Claim.from_json(row).verdict != row["verdict"]:
        says = f"says '{row['verdict']}', its numbers say '{Claim.from_json(row).verdict}'"
        found.append(Problem("contradicted", claim, says))
    if spec is None:
        told = "stored, but no study declares it any more"
        return found if declared_elsewhere else [*found, Problem("undeclared", claim, told)]
    now = spec.declared()
    before = {"threshold": row["threshold"], "null": row["null"], "control": row["control"]["what"]}
    for key in now:
        if bare(before[key]) != bare(now[key]):
            told = f"the {key} was {bare(before[key])} when it ran and is {bare(now[key])} in code"
            found.append(Problem("moved", claim, told))
    return found


def bare(value: Any) -> Any:
    """A threshold without the prose of its reason."""
    return {k: v for k, v in value.items() if k != "why"} if isinstance(value, Mapping) else value
