"""`glasshouse ledger`: every declared claim, its verdict, and whether the stored ones still stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from glasshouse.studies import Study


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("ledger")(ledger)


def ledger(
    as_json: Annotated[bool, typer.Option("--json", help="Print the claims as JSON.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit 1 where claims are missing, stale, or were redeclared.")
    ] = False,
    render: Annotated[
        bool, typer.Option("--render", help="Write the page <DIR>.md, such as docs/ledger.md.")
    ] = False,
    directory: Annotated[
        Path | None,
        typer.Option("--dir", help="Folder of the stored claims; default: docs/ledger of the checkout."),
    ] = None,
) -> None:
    """Show every claim that a study declares: the paper, our number, the verdict."""
    from glasshouse.evidence.ledger import problems, read_ledger, render_markdown, stored
    from glasshouse.runtime.files import write_text

    root = checkout()
    folder = directory or (root or Path.cwd()) / "docs" / "ledger"
    studies = _studies()
    specs = [spec for study in studies for spec in study.claims]
    rows = read_ledger(folder, specs=specs, tests=root)
    if as_json:
        print(json.dumps({"claims": rows}, indent=2, ensure_ascii=False, allow_nan=False))
    if render:
        docs = folder.parent
        pages = {path.relative_to(docs).as_posix() for path in docs.glob("*/*.md")}
        page = write_text(docs / f"{folder.name}.md", render_markdown(rows, stored(folder), pages))
        print(f"wrote {page}")
    if check:
        found = problems(folder, specs=specs, codes={s.slug: s.code for s in studies}, tests=root)
        typer.echo("\n".join(found) or f"{len(rows)} claims, all stored, none stale.", err=as_json)
        if found:
            raise typer.Exit(1)
    elif not (as_json or render):
        _show(rows)


def checkout() -> Path | None:
    """The folder of the source checkout this package runs from; None for an installed wheel."""
    import glasshouse

    root = Path(glasshouse.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "tests").is_dir() else None


def _studies() -> list[Study]:
    from glasshouse.studies import available, find

    return [find(slug) for slug in available()]


def _show(rows: list[dict[str, Any]]) -> None:
    from glasshouse.runtime.text import clean_text
    from glasshouse.statistics.estimate import Estimate

    for row in rows:
        ours = "" if row["estimate"] is None else str(Estimate.from_json(row["estimate"]))
        print(f"{row['verdict']:<14} {row['id']:<20} {ours or clean_text(row['claim'])}")
