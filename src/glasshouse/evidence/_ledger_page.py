"""`docs/ledger.md`: the stored claims as a page, by wing and study, the paper's word beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from glasshouse.evidence.claims import Threshold
from glasshouse.evidence.ledger import SHOWN_BY_TEST, declared
from glasshouse.runtime.text import clean_text
from glasshouse.statistics.estimate import Estimate

_HEAD = """# Ledger

Every claim that a study declares, with the paper's word beside ours. Rendered by `glasshouse ledger --render`
from `docs/ledger/*.json`; do not edit.

*holds*: the point meets the threshold, the interval excludes the null (where none is declared: the whole
interval meets the threshold), and the control fails. *fails*: the point misses and the interval excludes the
threshold, or the control passes. Else *undecided*. *reported*: a number without a threshold.
*shown by test*: a test of the suite, named here, fails where the claim does not hold.
"""
_COLUMNS = ("id", "claim", "paper", "ours", "n", "threshold", "null", "control", "verdict", "threshold set")
_SHORT = 9


def render_markdown(rows: Sequence[Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]]) -> str:
    """The page for `read_ledger`'s rows; `records` is what `stored` returned (run, seeds, notes)."""
    wings = {known.study: known.wing for known in declared()}
    wings |= {slug: record.get("wing", "") for slug, record in records.items()}
    studies: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        studies.setdefault((wings.get(row["study"], "others") or "others", row["study"]), []).append(row)
    parts, wing = [_HEAD, _tally(rows)], ""
    for study_wing, slug in sorted(studies):
        if study_wing != wing:
            wing = study_wing
            parts.append(f"## {_cell(wing)}\n")
        parts += _study(slug, studies[study_wing, slug], records.get(slug))
    return "\n".join(parts).rstrip() + "\n"


def _tally(rows: Sequence[Mapping[str, Any]]) -> str:
    verdicts = [row["verdict"] for row in rows]
    counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(sorted(verdicts))]
    return f"{len(rows)} claims: {', '.join(counts)}.\n"


def _study(slug: str, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None) -> list[str]:
    table = ["| " + " | ".join(_COLUMNS) + " |", "|" + "---|" * len(_COLUMNS)]
    table += ["| " + " | ".join(_cell(cell) for cell in _cells(row)) + " |" for row in rows]
    notes = [] if record is None else _notes(record)
    return [f"### {_cell(slug)}\n", _provenance(record), "\n".join(table) + "\n", *notes]


def _provenance(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "No run is stored.\n"
    config = record.get("config") or {}
    seeds = len(record.get("seeds") or ())
    return (
        f"Run `{_cell(record['run'])}` of {_cell(record['when'])}, configuration "
        f"`{_cell(config.get('name', '?'))}`, {seeds} seed{'' if seeds == 1 else 's'}, "
        f"device {_cell(record.get('device', '?'))}, code `{_cell(record['code'])}`.\n"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    estimate = None if row["estimate"] is None else Estimate.from_json(row["estimate"])
    threshold = "" if row["threshold"] is None else str(Threshold(**row["threshold"]))
    verdict = row["verdict"]
    if verdict == SHOWN_BY_TEST:
        verdict = f"{verdict} `{row['run']}`"
    return (
        f"`{row['id']}`",
        row["claim"],
        row["paper"] or "",
        "" if estimate is None else _ours(estimate),
        "" if estimate is None else str(estimate.n),
        threshold,
        "" if row["null"] is None else f"{row['null']:g}",
        _control(row["control"]),
        f"**{verdict}**" if verdict in ("holds", "fails") else verdict,
        _commit(row["threshold_set"]),
    )


def _ours(estimate: Estimate) -> str:
    if not estimate.defined:
        return estimate.method
    interval = f"[{estimate.low:.3g}, {estimate.high:.3g}]"
    return f"{estimate.value:.3g} {interval} ({estimate.level:.0%}, {estimate.method})"


def _control(control: Mapping[str, Any] | None) -> str:
    if control is None or not (control["what"] or control["estimate"]):
        return ""
    if control["estimate"] is None:
        return f"{control['what']}: not measured"
    return f"{control['what']}: {_ours(Estimate.from_json(control['estimate']))}"


def _commit(commit: str | None) -> str:
    if commit is None:
        return ""
    return f"`{commit[:_SHORT]}`" if " " not in commit and len(commit) >= 40 else commit


def _notes(record: Mapping[str, Any]) -> list[str]:
    lines = [f"- `{row['id']}`: {_cell(row['note'])}" for row in record["claims"] if row.get("note")]
    for row in record["claims"]:
        history = row.get("threshold_history") or []
        if len(history) > 1:
            past = "; ".join(f"{_commit(c['commit'])} {_cell(c['declared'])}" for c in history)
            lines.append(f"- `{row['id']}`: the declaration changed {len(history) - 1} times: {past}")
    return ["\n".join(lines) + "\n"] if lines else []


def _cell(text: Any) -> str:
    """Text that cannot break out of a table cell or bring markup of its own."""
    plain = clean_text(str(text)).replace("\n", " ").replace("|", "\\|")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
