"""`docs/ledger.md`: the stored claims as a page, by wing and study, the paper's word beside ours.

The page is Markdown that reads everywhere; `docs/assets/ledger.js` and `glasshouse.css` add the filters and
the colours where they are loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from html import escape
from typing import Any

from glasshouse.evidence._history import BUILT_BY_CODE
from glasshouse.evidence._ledger_figures import LedgerFigure
from glasshouse.evidence.claims import Claim, Threshold
from glasshouse.evidence.figures import domain
from glasshouse.evidence.ledger import SHOWN_BY_TEST, declared
from glasshouse.runtime.text import clean_text
from glasshouse.statistics.estimate import Estimate

Row = Mapping[str, Any]

_HEAD = """---
hide: [toc]
---

# Ledger

Every claim that a study declares, the paper's word beside ours, failed ones included. Rendered by
`glasshouse ledger --render` from `docs/ledger/*.json`; do not edit. `glasshouse ledger --check` says what is
missing, stale, or was never run.
"""
_RULE = """<details markdown="1"><summary>How a verdict is reached</summary>

- **holds**: the point meets the threshold, the interval excludes the null (where none is declared: the whole
  interval meets the threshold), and the control fails.
- **fails**: the point misses and the interval excludes the threshold, or the control passes.
- **undecided**: neither. **not run**: declared, and no run is stored. **reported**: a number without a
  threshold.
- **shown by test**: a test of the suite, named beside it, fails where the claim does not hold.

In the little pictures the bar is the interval, the dot the estimate, the shaded part what was asked for, and
the thin line the null. Thresholds, nulls and controls stand in code before the first run; the commit that set
each is given under "Nulls, controls and history".

</details>
"""
VERDICTS = ("holds", "fails", "undecided", "not run", SHOWN_BY_TEST, "reported")
_COLUMNS = ("verdict", "claim", "the paper", "ours", "asked")
_MORE = ("id", "interval", "null", "control", "set by", "on")
_SHORT = 9
LONGEST = 240
"""Characters of a declaration that are printed."""


def render_markdown(
    rows: Sequence[Row],
    records: Mapping[str, Row],
    pages: Collection[str],
    figures: Mapping[str, Sequence[LedgerFigure]],
    about: Mapping[str, tuple[str, str]],
) -> str:
    """See `glasshouse.evidence.ledger.render_markdown`."""
    wings = {known.study: known.wing for known in declared()}
    wings |= {slug: record.get("wing", "") for slug, record in records.items()}
    studies: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        studies.setdefault((wings.get(row["study"], "others") or "others", row["study"]), []).append(row)
    parts, wing = [_HEAD, _glance(studies), _RULE], ""
    for study_wing, slug in sorted(studies):
        if study_wing != wing:
            wing = study_wing
            parts.append(f"## {_cell(wing)}\n")
        page = f"{wing}/{slug}.md"
        link = page if page in pages else None
        told = _Study(slug, studies[study_wing, slug], records.get(slug), link, about.get(slug))
        parts += _section(wing, told, figures.get(slug, ()))
    return "\n".join(parts).rstrip() + "\n"


def _glance(studies: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """How many claims of each verdict, by study."""
    every = [row for rows in studies.values() for row in rows]
    lines = [f"| wing | study | {' | '.join(VERDICTS)} |", "|---|---|" + "---|" * len(VERDICTS)]
    for (wing, slug), rows in sorted(studies.items()):
        lines.append(f"| {_cell(wing)} | [{_cell(slug)}](#{_cell(slug)}) | {_counted(rows)} |")
    table = "\n".join([*lines, f"| **all** | {len(every)} claims | {_counted(every)} |"])
    return f'<div class="ledger-glance" markdown="1">\n\n{table}\n\n</div>\n'


def _counted(rows: Sequence[Row]) -> str:
    counts = Counter(row["verdict"] for row in rows)
    return " | ".join(str(counts[verdict] or "") for verdict in VERDICTS)


class _Study:
    """One study's rows and what is known of it."""

    def __init__(
        self,
        slug: str,
        rows: Sequence[Row],
        record: Row | None,
        page: str | None,
        about: tuple[str, str] | None,
    ) -> None:
        self.slug, self.rows, self.record, self.page, self.about = slug, rows, record, page, about


def _section(wing: str, study: _Study, figures: Sequence[LedgerFigure]) -> list[str]:
    more = [row for row in study.rows if row["estimate"] is not None or row["threshold_set"]]
    return [
        f'<section class="study" data-wing="{escape(wing, quote=True)}" markdown="1">\n',
        f"### {_cell(study.slug)}\n",
        _opening(study),
        *_figures(study, figures),
        _table(_COLUMNS, [_cells(row) for row in study.rows]),
        *([_folded(_table(_MORE, [_more(row, study.record) for row in more]), study.record)] if more else []),
        "</section>\n",
    ]


def _opening(study: _Study) -> str:
    """What is studied and after whom, then the run."""
    told = []
    if study.about is not None:
        title, paper = study.about
        told.append(
            f"{_cell(title).rstrip('.')}." + (f" Paper: {_cell(paper).rstrip('.')}." if paper else "")
        )
    if study.page is not None:
        told.append(f"[What it is, how to run it on your own data]({study.page}).")
    return "\n\n".join(filter(None, [" ".join(told), _provenance(study.record)])) + "\n"


def _provenance(record: Row | None) -> str:
    if record is None:
        return "*No run is stored.*"
    seeds = len(record.get("seeds") or ())
    where = f", {_cell(record['machine'])}" if record.get("machine") else ""
    return (
        f"*Run `{_cell(record['run'])}` of {_cell(record['when'])[:16].replace('T', ' ')}: configuration "
        f"`{_cell((record.get('config') or {}).get('name', '?'))}`, {seeds} seed{'' if seeds == 1 else 's'}, "
        f"device {_cell(record.get('device', '?'))}{where}, code `{_cell(record['code'])}`.*"
    )


def _figures(study: _Study, figures: Sequence[LedgerFigure]) -> list[str]:
    """Each figure folded away, one click from the claims; one of an earlier run says so."""
    run = None if study.record is None else study.record["run"]
    parts = []
    for figure in figures:
        name = _cell(figure.name.replace("-", " "))
        old = "" if figure.run == run else f" (of an earlier run, `{_cell(figure.run or 'unknown')}`)"
        place = f"ledger/figures/{study.slug}/{figure.path.name}"
        parts.append(
            f'<details class="figure" markdown="1"><summary>Figure: {name}{old}</summary>\n\n'
            f"![{_cell(study.slug)}: {name}]({place}){{ loading=lazy }}\n\n</details>\n"
        )
    return parts


def _folded(table: str, record: Row | None) -> str:
    summary = "<summary>Nulls, controls and history</summary>"
    return f'<details markdown="1">{summary}\n\n{table}\n{_notes(record)}{_history(record)}</details>\n'


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    estimate = None if row["estimate"] is None else Estimate.from_json(row["estimate"])
    verdict, claim = row["verdict"], f"`{_code(row['id'])}` {_cell(row['claim'])}"
    if verdict == SHOWN_BY_TEST:
        claim += f" (`{_code(row['run'])}`)"
    place = escape(str(row["id"]).replace("/", "-"), quote=True)
    why = _why(row)
    return (
        f'<span class="verdict {verdict.replace(" ", "-")}" id="claim-{place}">{verdict}</span>'
        + (f"<br><small>{why}</small>" if why else ""),
        claim,
        _cell(row["paper"] or ""),
        "" if estimate is None else f"{_cell(_ours(estimate))}, n {estimate.n}{_picture(row, estimate)}",
        "" if row["threshold"] is None else _cell(Threshold(**row["threshold"])),
    )


def _why(row: Row) -> str:
    """What made a claim fail or stay undecided, in a few words."""
    if row["verdict"] not in ("fails", "undecided"):
        return ""
    claim = Claim.from_json(row)
    threshold, control = claim.spec.threshold, claim.control
    if not claim.estimate.defined:
        return "nothing to estimate"
    if row["verdict"] == "fails":
        passes = control is not None and control.defined and threshold.met_by(control.value)
        return "the control passes, too" if passes else "the interval excludes what was asked"
    if not threshold.met_by(claim.estimate.value):
        return "missed, but within the interval"
    if control is None or not control.defined:
        return "the control was not measured"
    return "the interval reaches past it" if claim.spec.null is None else "the interval includes the null"


def _more(row: Row, record: Row | None) -> tuple[str, ...]:
    estimate = None if row["estimate"] is None else Estimate.from_json(row["estimate"])
    history = next(
        (c.get("threshold_history") or [] for c in (record or {}).get("claims", ()) if c["id"] == row["id"]),
        [],
    )
    return (
        f"`{_code(row['id'])}`",
        "" if estimate is None or not estimate.defined else _cell(f"{estimate.level:.0%}, {estimate.method}"),
        "" if row["null"] is None else f"{row['null']:g}",
        _cell(_control(row["control"])),
        _commit(row["threshold_set"]),
        str(history[-1]["when"] or "")[:10] if history else "",
    )


def _picture(row: Row, estimate: Estimate) -> str:
    """The interval as a small picture: what was asked for is shaded, the null is a thin line."""
    if not estimate.defined or row["threshold"] is None:
        return ""
    threshold = Threshold(**row["threshold"])
    marks = [threshold.value, threshold.upper, row["null"]]
    shown = [estimate.value, *marks, *(x for x in (estimate.low, estimate.high) if math.isfinite(x))]
    low, high = domain([x for x in shown if x is not None])

    def at(x: float) -> float:
        return round(2 + 116 * (min(max(x, low), high) - low) / (high - low), 1)

    parts = ['<rect class="axis" x="2" y="8" width="116" height="2"></rect>']
    if threshold.value is not None:
        left = threshold.value if threshold.relation in (">=", ">", "between") else low
        right = threshold.upper if threshold.relation == "between" else high
        right = threshold.value if threshold.relation in ("<=", "<") else right
        assert right is not None
        parts.append(
            f'<rect class="asked" x="{at(left)}" y="1" width="{at(right) - at(left):.1f}" height="16"></rect>'
        )
    if row["null"] is not None:
        parts.append(
            f'<rect class="null" x="{at(row["null"]) - 0.5:.1f}" y="1" width="1" height="16"></rect>'
        )
    width = max(at(estimate.high) - at(estimate.low), 1)
    parts.append(
        f'<rect class="bar" x="{at(estimate.low)}" y="6" width="{width:.1f}" height="6" rx="2"></rect>'
    )
    parts.append(f'<circle class="dot" cx="{at(estimate.value)}" cy="9" r="4"></circle>')
    told = f"estimate {estimate.value:.3g} on an axis from {low:.3g} to {high:.3g}"
    return (
        f'<svg class="interval" viewBox="0 0 120 18" width="120" height="18" role="img" aria-label="{told}">'
        f"{''.join(parts)}</svg>"
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
    return f"`{_code(commit[:_SHORT])}`" if " " not in commit and len(commit) >= 40 else _cell(commit)


def _notes(record: Row | None) -> str:
    noted = [row for row in (record or {}).get("claims", ()) if row.get("note")]
    return "".join(f"- `{_code(row['id'])}`: {_cell(row['note'])}\n" for row in noted) + (
        "\n" if noted else ""
    )


def _history(record: Row | None) -> str:
    """Every declaration of the claims whose declaration ever changed, oldest first."""
    moved = [row for row in (record or {}).get("claims", ()) if len(row.get("threshold_history") or ()) > 1]
    if not moved:
        return ""
    cells = [
        (
            f"`{_code(row['id'])}`",
            _commit(c["commit"]),
            str(c["when"] or "")[:16].replace("T", " "),
            _declared(c),
        )
        for row in moved
        for c in row["threshold_history"]
    ]
    return "Declarations that were changed:\n\n" + _table(("id", "commit", "when", "declared"), cells) + "\n"


def _declared(change: Mapping[str, Any]) -> str:
    """A declaration as it stood; one built by code is only pointed at."""
    plain = _cell(change["declared"])
    built = plain.startswith(BUILT_BY_CODE) or len(plain) > LONGEST
    return "(built by code; see the commit)" if built else plain


def _code(text: Any) -> str:
    """Text inside backquotes, where Markdown escapes for itself; nothing ends the quotes or the cell."""
    return clean_text(str(text)).replace("\n", " ").replace("`", "'").replace("|", "\\|")


def _cell(text: Any) -> str:
    """Text that cannot break out of a table cell or bring markup of its own."""
    plain = clean_text(str(text)).replace("\n", " ").replace("\\", "\\\\")
    for sign, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|")):
        plain = plain.replace(sign, safe)
    for sign in "`*_[]{}":
        plain = plain.replace(sign, "\\" + sign)
    return plain
