"""`glasshouse findings diff`: what changed between two audits; parse, compare, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.evidence.findings import Finding, Findings

Source = Annotated[str, typer.Argument(help="A findings.json, or the folder that an audit wrote.")]
SIGNS = {"new": "+", "worse": "!", "known": "=", "gone": "-", "unasked": "?"}
WORDS = {"unasked": "not asked"}


def register(app: typer.Typer) -> None:
    """Add the group."""
    group = typer.Typer(no_args_is_help=True, help="Compare what audits found.")
    group.command("diff")(diff)
    app.add_typer(group, name="findings")


def diff(
    old: Source,
    new: Source,
    fail_on: Annotated[
        str, typer.Option(metavar="SEVERITY", help="Exit 1 from: note, low, medium, high or critical.")
    ] = "low",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> int:
    """Say which findings are new, worse, known, gone, or were not asked for; nothing is asked of a model.

    \b
    Examples:
      glasshouse findings diff release-1/findings.json release-2/findings.json
      glasshouse findings diff release-1 release-2 --fail-on high

    Two findings are the same when check, trigger and entities are. A finding whose check could not be asked
    the second time is not called gone.
    Exit codes: 0 nothing new or worse at or above the severity, 1 something is, 2 a file cannot be read.
    """  # noqa: D301
    from glasshouse.audit.inputs import read_severity
    from glasshouse.runtime.text import clean_text

    limit = read_severity(fail_on)
    before, after = _read(old), _read(new)
    compared = after.against(before)
    entries = differences(before, compared)
    if as_json:
        print(json.dumps({"subjects": _subjects(before, after), "findings": entries}, indent=2))
    else:
        print(clean_text("\n".join(_lines(before, after, entries))))
    return int(any(finding.severity.rank >= limit.rank for finding in compared.counted()))


def differences(before: Findings, compared: Findings) -> list[dict[str, Any]]:
    """One entry per finding of either audit: what became of it, its severity and estimate then and now.

    `compared` is what `against(before)` returned.
    """
    assert compared.baseline is not None
    then, now = _by_key(before), _by_key(compared)
    groups = compared.baseline.model_dump()
    return [
        {"status": status, "key": key, "before": _told(then.get(key)), "now": _told(now.get(key))}
        for status in SIGNS
        for key in groups[status]
    ]


def _by_key(findings: Findings) -> dict[str, Finding]:
    """The worst finding of each key."""
    return {f.key: f for f in sorted(findings.findings, key=lambda f: f.severity.rank)}


def _told(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    told = finding.model_dump(mode="json", include={"severity", "summary", "estimate"})
    return {**told, "severity": finding.severity.value}


def _lines(before: Findings, after: Findings, entries: list[dict[str, Any]]) -> list[str]:
    subjects = _subjects(before, after)
    lines = [] if subjects["before"] == subjects["now"] else [f"{subjects['before']} -> {subjects['now']}"]
    for entry in entries:
        shown = entry["now"] or entry["before"]
        word = WORDS.get(entry["status"], entry["status"])
        lines.append(f"{SIGNS[entry['status']]} {word:<9} {_severities(entry):<16} {shown['summary']}")
        lines += [f"{'':12}{change}" for change in _change(entry)]
    return lines or ["Neither audit found anything."]


def _severities(entry: dict[str, Any]) -> str:
    seen = [side["severity"] for side in (entry["before"], entry["now"]) if side is not None]
    return " -> ".join(dict.fromkeys(seen))


def _change(entry: dict[str, Any]) -> list[str]:
    """The estimates of both audits, where both have one."""
    from glasshouse.statistics.estimate import Estimate

    if entry["before"] is None or entry["now"] is None:
        return []
    then, now = (Estimate.from_json(entry[side]["estimate"]) for side in ("before", "now"))
    return [f"was {then}", f"is  {now}"] if then != now else []


def _subjects(before: Findings, after: Findings) -> dict[str, str]:
    return {side: str(f.subject.get("name", "?")) for side, f in (("before", before), ("now", after))}


def _read(source: str) -> Findings:
    from glasshouse.cli.report import read_findings

    path = Path(source).expanduser()
    found: Findings = read_findings(path / "findings.json" if path.is_dir() else path)
    return found
