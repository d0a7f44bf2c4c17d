"""`glasshouse ledger`: every declared claim, its verdict, and whether the stored ones still stand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.evidence._ledger_check import Problem
    from glasshouse.studies import Study


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ledger")(ledger)


def ledger(
    as_json: Annotated[bool, typer.Option("--json", help="Print the claims as JSON.")] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Exit 1 where claims are missing, stale, not run, or were redeclared."),
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Write the page <DIR>.md, such as docs/ledger.md.")
    ] = False,
    figures: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUNS", help="Draw the figures of the stored runs, found in this folder."),
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder of the stored claims; default: docs/ledger of the checkout."),
    ] = None,
) -> None:
    """Show every claim that a study declares: the paper, our number, the verdict.

    \b
    Examples:
      glasshouse ledger                          the claims and their verdicts
      glasshouse ledger --check                  do they still stand for this code?
      glasshouse ledger --figures glasshouse-runs --render

    Exit codes: 0 done (with --check: everything stands), 1 something does not stand, 2 a file is damaged.
    """  # noqa: D301
    from glasshouse.evidence.ledger import problems, read_ledger

    root = checkout()
    folder = directory or (root or Path.cwd()) / "docs" / "ledger"
    studies = _studies()
    specs = [spec for study in studies for spec in study.claims]
    rows = read_ledger(folder, specs=specs, tests=root)
    if figures:
        _draw(folder, figures)
    if render:
        _render(folder, rows, studies)
    found = None
    if check:
        found = problems(folder, specs=specs, codes={s.slug: s.code for s in studies}, tests=root)
    if as_json:
        told = {} if found is None else {"problems": [problem.to_json() for problem in found]}
        print(json.dumps({"claims": rows, **told}, indent=2, ensure_ascii=False, allow_nan=False))
    elif found is not None:
        _say_problems(rows, found)
    elif not (render or figures):
        _show(rows)
    if found:
        raise typer.Exit(1)


def checkout() -> Path | None:
    """The folder of the source checkout this package runs from; None for an installed wheel."""
    import glasshouse

    root = Path(glasshouse.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


def _studies() -> list[Study]:
    from glasshouse.studies import available, find

    return [find(slug) for slug in available()]


def _draw(folder: Path, roots: Sequence[Path]) -> None:
    """The figures of every stored run that is found; what is not drawn is said."""
    from glasshouse.evidence._ledger_figures import find_run, store_figures
    from glasshouse.evidence.ledger import stored
    from glasshouse.runtime.text import clean_text

    for slug, record in stored(folder).items():
        if record.get("kind") == "benchmark":
            continue
        run = find_run(roots, record["run"])
        if run is None:
            print(f"{slug}: the run {record['run']} is not there; its figures stay as they are")
            continue
        drawn = store_figures(folder, run)
        print(f"{slug}: {len(drawn.written)} figures")
        for name, why in drawn.left_out.items():
            print(clean_text(f"{slug}: {name} is left out: {why}"))


def _render(folder: Path, rows: list[dict[str, Any]], studies: Sequence[Study]) -> None:
    from glasshouse.evidence._ledger_figures import stored_figures
    from glasshouse.evidence.ledger import render_markdown, stored
    from glasshouse.runtime.files import write_text

    docs = folder.parent
    pages = {path.relative_to(docs).as_posix() for path in docs.glob("*/*.md")}
    about = {study.slug: (study.title, study.paper) for study in studies}
    text = render_markdown(rows, stored(folder), pages, figures=stored_figures(folder), about=about)
    print(f"wrote {write_text(docs / f'{folder.name}.md', text)}")


def _say_problems(rows: list[dict[str, Any]], found: Sequence[Problem]) -> None:
    """How the claims stand, then what does not, by kind with what the kind means."""
    from glasshouse.evidence._ledger_check import MEANING
    from glasshouse.runtime.text import clean_text

    verdicts = Counter(row["verdict"] for row in rows)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
    print(f"{len(rows)} claims: {counts}.")
    for kind, meaning in MEANING.items():
        of_kind = [problem for problem in found if problem.kind == kind]
        if of_kind:
            print(f"{kind} ({len(of_kind)}): {meaning}")
            print(clean_text("\n".join(f"  {problem}" for problem in of_kind)))
    if not found:
        print("All stored, none stale: the ledger stands for this code.")


def _show(rows: list[dict[str, Any]]) -> None:
    from glasshouse.runtime.text import clean_text
    from glasshouse.statistics.estimate import Estimate

    for row in rows:
        ours = "" if row["estimate"] is None else str(Estimate.from_json(row["estimate"]))
        print(f"{row['verdict']:<14} {row['id']:<20} {ours or clean_text(row['claim'])}")
