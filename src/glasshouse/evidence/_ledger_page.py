"""`docs/ledger.md`: the stored claims as a page, by wing and study, the paper's word beside ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from glasshouse.evidence.claims import Threshold
from glasshouse.evidence.ledger import SHOWN_BY_TEST, declared
from glasshouse.runtime.text import clean_text
from glasshouse.statistics.estimate import Estimate

_HEAD = """# Ledger

Every claim that a study declares, the paper's word beside ours. Rendered by `glasshouse ledger --render` from
`docs/ledger/*.json`; do not edit.

*holds*: the point meets the threshold, the interval excludes the null (where none is declared: the whole
interval meets the threshold), and the control fails. *fails*: the point misses and the interval excludes the
threshold, or the control passes. Else *undecided*. *not run*: declared, and no run is stored. *reported*: a
number without a threshold. *shown by test*: a test of the suite, named here, fails where the claim does not
hold. Thresholds were set in the commits named under "Nulls, controls and commits".
"""
_VERDICTS = ("holds", "fails", "undecided", "not run", "shown by test", "reported")
_COLUMNS = ("verdict", "claim", "ours", "asked", "the paper")
_MORE = ("id", "interval", "null", "control", "threshold set")
_SHORT = 9
LONGEST = 240
"""Characters of a declaration that are printed."""


def render_markdown(
    rows: Sequence[Mapping[str, Any]],
    records: Mapping[str, Mapping[str, Any]],
    pages: Collection[str] = (),
) -> str:
    """The page for `read_ledger`'s rows; `records` is what `stored` returned (run, seeds, notes).

    `pages` are the system pages that exist beside it, as `wing/slug.md`: those are linked.
    """
    wings = {known.study: known.wing for known in declared()}
    wings |= {slug: record.get("wing", "") for slug, record in records.items()}
    studies: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        studies.setdefault((wings.get(row["study"], "others") or "others", row["study"]), []).append(row)
    parts, wing = [_HEAD, _glance(studies)], ""
    for study_wing, slug in sorted(studies):
        if study_wing != wing:
            wing = study_wing
            parts.append(f"## {_cell(wing)}\n")
        page = f"{wing}/{slug}.md"
        link = page if page in pages else None
        parts += _study(slug, studies[study_wing, slug], records.get(slug), link)
    return "\n".join(parts).rstrip() + "\n"


def _glance(studies: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """How many claims of each verdict, by study."""
    every = [row for rows in studies.values() for row in rows]
    lines = [f"| wing | study | {' | '.join(_VERDICTS)} |", "|---|---|" + "---|" * len(_VERDICTS)]
    for (wing, slug), rows in sorted(studies.items()):
        lines.append(f"| {_cell(wing)} | [{_cell(slug)}](#{_cell(slug)}) | {_counted(rows)} |")
    return "\n".join([*lines, f"| **all** | {len(every)} claims | {_counted(every)} |"]) + "\n"


def _counted(rows: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    return " | ".join(str(counts[verdict] or "") for verdict in _VERDICTS)


def _study(
    slug: str, rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any] | None, page: str | None
) -> list[str]:
    told = [*([] if page is None else [f"[Page and figures]({page})."]), _provenance(record)]
    more = [row for row in rows if row["estimate"] is not None or row["threshold_set"]]
    return [
        f"### {_cell(slug)}\n",
        " ".join(told),
        _table(_COLUMNS, [_cells(row) for row in rows]),
        *([_folded(_table(_MORE, [_more(row) for row in more]), _notes(record))] if more else []),
    ]


def _folded(table: str, notes: str) -> str:
    summary = "<summary>Nulls, controls and commits</summary>"
    return f'<details markdown="1">{summary}\n\n{table}\n{notes}</details>\n'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return (
        "\n".join([*lines, *("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows)]) + "\n"
    )


def _provenance(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return "No run is stored.\n"
    config = record.get("config") or {}
    seeds = len(record.get("seeds") or ())
    return (
        f"Run `{_cell(record['run'])}` of {_cell(record['when'])[:16].replace('T', ' ')}, configuration "
        f"`{_cell(config.get('name', '?'))}`, {seeds} seed{'' if seeds == 1 else 's'}, "
        f"device {_cell(record.get('device', '?'))}, code `{_cell(record['code'])}`.\n"
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    estimate = None if row["estimate"] is None else Estimate.from_json(row["estimate"])
    verdict, claim = row["verdict"], f"`{row['id']}` {row['claim']}"
    if verdict == SHOWN_BY_TEST:
        claim += f" (`{row['run']}`)"
    return (
        f"**{verdict}**" if verdict in ("holds", "fails") else verdict,
        claim,
        "" if estimate is None else f"{_ours(estimate)}, n {estimate.n}",
        "" if row["threshold"] is None else str(Threshold(**row["threshold"])),
        row["paper"] or "",
    )


def _more(row: Mapping[str, Any]) -> tuple[str, ...]:
    estimate = None if row["estimate"] is None else Estimate.from_json(row["estimate"])
    return (
        f"`{row['id']}`",
        "" if estimate is None or not estimate.defined else f"{estimate.level:.0%}, {estimate.method}",
        "" if row["null"] is None else f"{row['null']:g}",
        _control(row["control"]),
        _commit(row["threshold_set"]),
    )


def _ours(estimate: Estimate) -> str:
    if not estimate.defined:
        return estimate.method
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


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


def _notes(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    lines = [f"- `{row['id']}`: {_cell(row['note'])}" for row in record["claims"] if row.get("note")]
    for row in record["claims"]:
        history = row.get("threshold_history") or []
        if len(history) > 1:
            past = "; ".join(f"{_commit(c['commit'])} {_declared(c['declared'])}" for c in history)
            lines.append(f"- `{row['id']}`: the declaration changed {len(history) - 1} times: {past}")
    return "\n".join([*lines, "", ""]) if lines else ""


def _declared(text: str) -> str:
    """A declaration as it stood; one built by code is only pointed at."""
    plain = _cell(text)
    return plain if len(plain) <= LONGEST else "(built by code; see the commit)"


def _cell(text: Any) -> str:
    """Text that cannot break out of a table cell or bring markup of its own."""
    plain = clean_text(str(text)).replace("\n", " ").replace("|", "\\|")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
