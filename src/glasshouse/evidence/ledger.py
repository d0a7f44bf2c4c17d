"""The ledger: every claim of every study, the paper's word beside ours, on what it was measured, and when.

`declared.json` beside this file lists every id a specification declares. `docs/ledger/<slug>.json` holds what
was measured, one file per study. A row is shown for every declared id: *not run* where nothing is stored, and
*shown by test* for those that a test shows.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from glasshouse.evidence._history import threshold_history
from glasshouse.evidence._ledger_check import Problem, find_problems
from glasshouse.evidence._ledger_figures import LedgerFigure
from glasshouse.evidence.claims import ClaimSpec
from glasshouse.runtime import files
from glasshouse.runtime.errors import InputError

SCHEMA_VERSION = 1
FIELDS = (
    "id", "study", "claim", "estimate", "threshold", "null", "control", "paper", "verdict",
    "run", "code", "when", "threshold_set",
)  # fmt: skip
SHOWN_BY_TEST = "shown by test"


@dataclass(frozen=True)
class Declared:
    """One id of a specification; `shown_by` is the test (pytest's node id) that shows a `test` row."""

    id: str
    study: str
    wing: str
    kind: Literal["test", "claim", "report"]
    claim: str
    shown_by: str | None = None


@cache
def declared() -> tuple[Declared, ...]:
    """Every id that a specification declares, in the order of the specifications."""
    return tuple(Declared(**row) for row in files.read_json(Path(__file__).with_name("declared.json")))


def write_claims(folder: Path | str, record: Mapping[str, Any], *, sources: Sequence[Path] = ()) -> Path:
    """Store the claims of one run as `<folder>/<study>.json` and return the path.

    `record` is `claims.json` of the run (study, wing, run, config, seeds, device, code, when, versions,
    claims). Each claim gets `threshold_set`, the commit that last changed its threshold, null or control in
    `sources` ("uncommitted"; None outside git), and `threshold_history`, all such changes, oldest first.
    """
    history = threshold_history(sources, [row["id"] for row in record["claims"]])
    claims = []
    for row in record["claims"]:
        changes = history[row["id"]]
        claims.append(
            {
                **row,
                "threshold_set": changes[-1].commit if changes else None,
                "threshold_history": [change.to_json() for change in changes],
            }
        )
    path = Path(folder) / f"{record['study']}.json"
    return files.write_json(path, {"schema_version": SCHEMA_VERSION, **record, "claims": claims})


def stored(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Study slug -> what `<folder>/<slug>.json` holds; {} for a missing folder.

    Raises InputError naming the file when one is damaged or of another schema version.
    """
    return {path.stem: _read(path) for path in sorted(Path(folder).glob("*.json"))}


def read_ledger(
    folder: Path | str, *, specs: Iterable[ClaimSpec] = (), tests: Path | None = None
) -> list[dict[str, Any]]:
    """One row with exactly `FIELDS` per claim: declared ones in their order, then those of third parties.

    `specs` are the claims declared in code: they fill threshold, null and control of rows that were not run.
    `tests` is the folder that node ids are relative to; without it no row is shown by a test.
    """
    found = {row["id"]: (record, row) for record in stored(folder).values() for row in record["claims"]}
    in_code = {spec.id: spec for spec in specs}
    rows = []
    for known in declared():
        if known.kind == "test":
            rows.append(_test_row(known, tests))
        elif known.id in found:
            rows.append(_stored_row(*found.pop(known.id)))
        else:
            rows.append(_missing_row(known, in_code.get(known.id)))
    listed = {row["id"] for row in rows}
    rows += [_stored_row(*pair) for claim, pair in found.items() if claim not in listed]
    listed = {row["id"] for row in rows}
    theirs = (spec for spec in in_code.values() if spec.id not in listed)
    rows += [_missing_row(Declared(s.id, s.study, "", "claim", s.claim), s) for s in theirs]
    return rows


def problems(
    folder: Path | str, *, specs: Iterable[ClaimSpec], codes: Mapping[str, str], tests: Path | None
) -> list[Problem]:
    """What keeps the ledger from standing for the code; [] when it does.

    `codes` is the current code version of each study. Found are declared ids without a row or a test, claims
    that were not run, stored thresholds, nulls or controls that differ from the code's, verdicts that do not
    follow from the stored numbers, rows that nothing declares, and rows whose code has changed since.
    """
    return find_problems(stored(folder), specs=specs, codes=codes, tests=tests)


def names_a_test(root: Path, node: str) -> bool:
    """Whether `node` ("tests/x/test_y.py::test_z" or "...::TestA::test_z") names a test under `root`."""
    name, *parts = node.partition("[")[0].split("::")
    path = root / name
    if not parts or not path.is_file():
        return False
    scope: Sequence[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in parts:
        inside = [
            item
            for item in scope
            if isinstance(item, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and item.name == part
        ]
        if not inside:
            return False
        scope = inside[-1].body
    return parts[-1].startswith("test")


def _read(path: Path) -> dict[str, Any]:
    try:
        record = files.read_json(path)
        if record["schema_version"] != SCHEMA_VERSION:
            raise InputError(
                f"the ledger file has schema version {record['schema_version']}",
                where=str(path),
                fix="run the study",
            )
        for row in record["claims"]:
            row["id"], row["verdict"]
        record["study"], record["run"], record["code"], record["when"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the ledger file is damaged ({error!r})",
            where=str(path),
            fix="restore it or run the study again",
        ) from error
    return dict(record)


def _stored_row(record: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    ran = row["verdict"] != "not run"
    provenance = {key: record[key] if ran else None for key in ("run", "code", "when")}
    measured = {key: row[key] for key in FIELDS if key in row and key != "threshold_set"}
    return _row(study=record["study"], threshold_set=row.get("threshold_set"), **measured, **provenance)


def _missing_row(known: Declared, spec: ClaimSpec | None) -> dict[str, Any]:
    if spec is None:
        return _row(id=known.id, study=known.study, claim=known.claim, paper="", verdict="not run")
    row = {key: value for key, value in spec.not_run().items() if key in FIELDS}
    return _row(study=known.study, **row)


def _test_row(known: Declared, tests: Path | None) -> dict[str, Any]:
    shown = tests is not None and known.shown_by is not None and names_a_test(tests, known.shown_by)
    return _row(
        id=known.id, study=known.study, claim=known.claim, paper="",
        verdict=SHOWN_BY_TEST if shown else "not run", run=known.shown_by if shown else None,
    )  # fmt: skip


def _row(**given: Any) -> dict[str, Any]:
    return {field: given.get(field) for field in FIELDS}


def render_markdown(
    rows: Sequence[Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
    pages: Collection[str] = (),
    *,
    figures: Mapping[str, Sequence[LedgerFigure]] | None = None,
    about: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """`docs/ledger.md` for the rows of `read_ledger` and the files of `stored`.

    `pages` are the system pages that exist beside it, as `wing/slug.md`; `figures` is what `stored_figures`
    returned; `about` gives (title, paper) by study.
    """
    from glasshouse.evidence._ledger_page import render_markdown as render

    return render(rows, records, pages, figures or {}, about or {})
