"""What a curation leaves for its reader: `rows.parquet`, `curate.json`, `trajectory.npz`, `curate.html`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from glasshouse.attribution.pre_memorization.accuracy import dataset_accuracy, memorised
from glasshouse.evidence.findings import RankedRow, RowsEvidence, TableEvidence, Token
from glasshouse.runtime import files

if TYPE_CHECKING:
    from glasshouse.attribution.pre_memorization.curating import Curated
    from glasshouse.evidence.report.illustrated import Part

TITLE = "What to collect more of"
SHOWN = 30


def write_curation(folder: Path | str, found: Curated) -> Path:
    """Write all four files, each whole or not, and return the page's path; the page comes last."""
    from glasshouse.evidence.report.illustrated import render_illustrated

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    provenance = {**found.prepared.spec(), "threshold": found.threshold}
    if found.plan is not None:
        found.plan.save(place / "rows.parquet")
    else:
        (place / "rows.parquet").unlink(missing_ok=True)  # of an earlier curation
    found.trajectory.save(place / "trajectory.npz")
    files.write_json(place / "curate.json", to_json(found, provenance))
    page = render_illustrated(TITLE, _lead(found), _parts(found), provenance, all_in="rows.parquet")
    return files.write_text(place / "curate.html", page)


def to_json(found: Curated, provenance: dict[str, Any]) -> dict[str, Any]:
    """Everything in plain JSON; `collect` maps row ids to numbers of examples."""
    plan = None if found.plan is None else found.plan.to_frame()
    collect = (
        {} if plan is None else {r: int(c) for r, c in zip(plan["row"], plan["collect"], strict=True) if c}
    )
    groups = None
    if found.plan is not None and found.plan.groups is not None:
        groups = found.plan.by_group().to_dict("records")
    return {
        "schema_version": 1,
        "predicted_test_accuracy": found.predicted.to_json(),
        "threshold": found.threshold,
        "collect": collect,
        "groups": groups,
        "copied": list(found.fragile["row"]),
        "undefined": found.notes.undefined.to_json(),
        "unparsable": None if found.notes.unparsable is None else found.notes.unparsable.to_json(),
        "notes": list(found.sentences),
        "checkpoints": _course(found),
        "provenance": provenance,
    }


def _lead(found: Curated) -> str:
    p, n = found.predicted, len(found.trajectory.trained)
    kinds = f"{len(found.fragile):,} of {n:,} training rows were merely copied."
    return (
        f"Expect an accuracy of {p.value:.2f} [{p.low:.2f}, {p.high:.2f}] on new questions of this kind. "
        f"{kinds} {' '.join(found.sentences)}"
    )


def _parts(found: Curated) -> tuple[Part, ...]:
    from glasshouse.evidence.report.illustrated import Part

    by_id = {row.id: row for row in found.prepared.rows}
    names = dict(zip(found.trajectory.row_ids, (row.id for row in found.prepared.rows), strict=True))
    parts = [_course_part(found)]
    if found.plan is not None:
        table = found.plan.to_frame()
        wanted = table[table["collect"] > 0]
        near = [
            (names[r], float(p), int(c))
            for r, p, c in zip(wanted["row"], wanted["pm"], wanted["collect"], strict=True)
        ]
        below = int((found.plan.pm < found.plan.cutoff).sum())
        text = (
            f"{below:,} queries were answered rightly in fewer than {found.plan.cutoff:.0%} of samples "
            f"before their solution was copied; {found.plan.budget:,} new examples are shared among them."
        )
        shown = [_ranked(by_id[r], 1 - p, f"collect {c}") for r, p, c in near[:SHOWN]]
        evidence: list[Any] = [_groups(found)] if found.plan.groups is not None else []
        title = "Collect near these queries"
        evidence.append(
            RowsEvidence(title=title, caption="Score: 1 - accuracy before memorization.", rows=tuple(shown))
        )
        parts.append(Part("What to collect", text, evidence=tuple(evidence)))
    copied = [(names[r], float(p)) for r, p in zip(found.fragile["row"], found.fragile["pm"], strict=True)]
    rows = tuple(_ranked(by_id[r], 1 - p, "") for r, p in copied[:SHOWN])
    text = "Right at the last checkpoint, and never before their own solution was known by heart."
    parts.append(Part("Merely copied", text, evidence=(RowsEvidence(title="Rows", rows=rows),)))
    return tuple(parts)


def _course_part(found: Curated) -> Part:
    from glasshouse.evidence.report.curves import Chart, Line
    from glasshouse.evidence.report.illustrated import Part

    rows = _course(found)
    x = tuple(float(row["step"]) for row in rows)
    lines = [
        Line(name, x, tuple(float(row[key]) for row in rows), "measured")
        for name, key in (
            ("training rows", "train"),
            ("before memorization", "pm"),
            ("copied rows", "copied"),
        )
    ]
    if "test" in rows[0]:
        lines.append(Line("test rows", x, tuple(float(row["test"]) for row in rows), "measured"))
    chart = Chart(title="The run, by step", x_title="optimizer step", y_title="share", lines=tuple(lines))
    columns = tuple(rows[0])
    table = TableEvidence(
        title="Numbers", columns=columns,
        rows=tuple(tuple(f"{row[c]:.3f}" if c != "step" else str(row[c]) for c in columns) for row in rows),
    )  # fmt: skip
    return Part("The run", charts=(chart,), evidence=(table,))


def _course(found: Curated) -> list[dict[str, Any]]:
    traj = found.trajectory
    train = traj.accuracy[:, traj.trained].mean(1)
    pm, copied = dataset_accuracy(traj, found.threshold), memorised(traj, found.threshold)[:, traj.trained]
    rows: list[dict[str, Any]] = [
        {"step": int(s), "train": float(a), "pm": float(b), "copied": float(c)}
        for s, a, b, c in zip(traj.steps, train, pm, copied.mean(1), strict=True)
    ]
    if traj.test_accuracy is not None:
        rows = [{**row, "test": float(t)} for row, t in zip(rows, traj.test_accuracy, strict=True)]
    return rows


def _groups(found: Curated) -> TableEvidence:
    assert found.plan is not None
    table = found.plan.by_group()
    cells = zip(table["group"], table["rows"], table["pm"], table["collect"], strict=True)
    return TableEvidence(
        title="By group", columns=("group", "rows", "mean PM", "collect"),
        rows=tuple((str(g), str(n), f"{p:.2f}", str(c)) for g, n, p, c in cells),
    )  # fmt: skip


def _ranked(row: Any, score: float, note: str) -> RankedRow:
    turns = tuple((turn.role, (Token(text=turn.text),)) for turn in row.turns)
    return RankedRow(row_id=row.id, score=score, turns=turns, note=note)
